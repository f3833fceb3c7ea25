// The page: what was done, the verdict at each target, the curves, and one SAE in detail.

function heading() {
  const input = baseName(shown(REPORT.input));
  const title =
    SAES.length === 1 ? `${shown(SAES[0].name)} measured on ${input}` : `${SAES.length} SAEs compared on ${input}`;
  document.title = title;
  const boot = REPORT.bootstrap;
  const several = SAES.some((sae) => list(sae.points).length > 1);
  const search = REPORT.search && REPORT.search !== "none" ? `a search (${REPORT.search})` : "no search";
  const done = [
    `${shown(REPORT.rows, FORMATS.count)} rows of ${shown(REPORT.width, FORMATS.count)} values.`,
    leftOut(),
    `${several ? "At several steps, the" : "The"} rows were encoded into a file, with ${search} and ` +
      `${REPORT.residual ? "a" : "no"} residual layer, and decoded again; every size is that of such a file.`,
    REPORT.weights ? `SAE decoders are taken in ${shown(REPORT.weights)}.` : "",
    REPORT.metric ? `The metric of decoded rows is ${shown(REPORT.metric)}.` : "",
    boot && LEVEL
      ? `Intervals are ${LEVEL}: ${shown(boot.resamples, FORMATS.count)} bootstrap resamples of ` +
        `${shown(boot.blocks, FORMATS.count)} ${shown(boot.unit)}.`
      : "",
  ];
  return element(
    "header",
    {},
    element("h1", {}, breakable(title)),
    element("p", { class: "lead" }, done.filter(Boolean).join(" ")),
  );
}

/** The rows of the input that were not measured, as a sentence. */
function leftOut() {
  const { rows_in_input: all, skip_first: first, rows_mask: mask } = REPORT.selection ?? {};
  if (!(all > REPORT.rows)) return "";
  const why = [
    isPositive(first) ? `the first ${first === 1 ? "row" : `${shown(first)} rows`} of each sequence` : null,
    typeof mask === "string" ? `what ${baseName(mask)} masks` : null,
  ].filter(Boolean);
  const left = `${shown(all - REPORT.rows, FORMATS.count)} of the input’s ${shown(all, FORMATS.count)} are left out`;
  return `${left}${why.length ? `: ${why.join(", and ")}` : ""}.`;
}

function saeTable() {
  const precisions = [...new Set(SAES.flatMap((sae) => entries(sae.decoder).map(([name]) => name)))];
  const decoder = (name, key) => SAES.map((sae) => sae.decoder?.[name]?.[key]);
  const { reference, percent } = REPORT.bd_rate ?? {};
  const shares = SAES.map((sae) => (entries(percent).find(([name]) => name === sae.name) ?? [])[1]);
  return [
    element("h2", {}, SAES.length > 1 ? "The SAEs" : "The SAE"),
    element(
      "p",
      {},
      "L0 is the mean number of latents that fire in a row; the floor is the NMSE before anything is quantized.",
      precisions.length ? " Bytes are what the SAE’s decoder takes in a file, by the precision of its numbers." : "",
      reference
        ? ` BD-rate is the mean difference in bits from ${reference} at the same NMSE, over the range that both cover.`
        : "",
    ),
    sortable(
      "SAEs",
      withValues([
        nameColumn(SAES.map((sae) => sae.name)),
        column(
          "n_latents",
          "latents",
          FORMATS.count,
          SAES.map((sae) => sae.n_latents),
        ),
        column(
          "l0",
          "L0",
          FORMATS.rate,
          SAES.map((sae) => sae.l0),
        ),
        column(
          "floor",
          "floor",
          FORMATS.nmse,
          SAES.map((sae) => sae.floor),
        ),
        column("bd_rate", "BD-rate", (value) => `${fixed(1)(value)} %`, shares),
        ...precisions.flatMap((name) => [
          column(`${name}_bytes`, `${name}\nbytes`, FORMATS.count, decoder(name, "bytes")),
          column(`${name}_nmse`, `NMSE,\n${name}`, FORMATS.nmse, decoder(name, "nmse")),
        ]),
      ]),
    ),
  ];
}

function pointTables() {
  const points = SAES.flatMap((sae) => list(sae.points).map((point) => ({ ...point, sae: sae.name })));
  const measured = (key, label, format, interval) =>
    column(
      key,
      label,
      format,
      points.map((point) => point[key]),
      points.map((point) => point[interval]),
    );
  const crossings = list(REPORT.crossings).filter(Boolean);
  return [
    points.length
      ? element(
          "details",
          {},
          element(
            "summary",
            {},
            points.length > 1 ? `All ${shown(points.length)} files as a table` : "The file as a table",
          ),
          sortable(
            "files",
            withValues([
              nameColumn(points.map((point) => point.sae)),
              column(
                "step",
                "step",
                FORMATS.step,
                points.map((p) => p.step),
              ),
              measured("bits_per_row", "bits per row", FORMATS.rate, "bits_interval"),
              measured("nmse", "NMSE", FORMATS.nmse, "nmse_interval"),
              column(
                "nmse_median",
                "median of rows",
                FORMATS.nmse,
                points.map((p) => p.nmse_median),
              ),
              column(
                "l0",
                "L0",
                FORMATS.rate,
                points.map((p) => p.l0),
              ),
              measured("metric", "metric", FORMATS.value, "metric_interval"),
            ]),
          ),
        )
      : null,
    crossings.length
      ? element(
          "details",
          {},
          element("summary", {}, "Where curves cross"),
          element("p", {}, "Which SAE needs fewer bits changes at these points."),
          sortable("crossings", [
            nameColumn(crossings.map((one) => one.a)),
            { ...nameColumn(crossings.map((one) => one.b)), label: "and" },
            column(
              "nmse",
              "NMSE",
              FORMATS.nmse,
              crossings.map((one) => one.nmse),
            ),
            column(
              "bits_per_row",
              "bits per row",
              FORMATS.rate,
              crossings.map((one) => one.bits_per_row),
            ),
            ...withValues([
              column(
                "lowest",
                "no third below",
                FORMATS.value,
                crossings.map(({ lowest }) => (typeof lowest === "boolean" ? (lowest ? "yes" : "no") : null)),
              ),
            ]),
          ]),
        )
      : null,
  ];
}

function page() {
  document
    .querySelector("main")
    .replaceChildren(
      ...[
        heading(),
        verdicts(),
        element("h2", {}, "Rate and distortion"),
        curveCharts(),
        pointTables(),
        baselinesSection(),
        saeTable(),
        twoPartSection(),
        detailSection(),
        element(
          "footer",
          {},
          `Made by saecodec ${shown(REPORT.version)}`,
          REPORT.input ? [" from ", ...breakable(shown(REPORT.input))] : null,
          ". The numbers of this page lie beside it as JSON.",
        ),
      ]
        .flat()
        .filter(Boolean),
    );
  document.body.append(tip);
}

page();
