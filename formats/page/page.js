// The page: what was done, the verdict at each target, the curves, and one SAE in detail.

const REPORT = JSON.parse(document.getElementById("report").textContent);
const SAES = list(REPORT.saes).filter((sae) => sae && typeof sae === "object");
const TARGETS = list(REPORT.targets).filter(isNumber);
const FRONT = SAES.length > 1 ? list(REPORT.pareto).filter(Boolean) : [];
const LEVEL = isNumber(REPORT.bootstrap?.level) ? `${shown(100 * REPORT.bootstrap.level)} %` : null;

/** The entry of {"0.12": ...} for a target, however the number was written. */
const atTarget = (entriesByTarget, target) => entries(entriesByTarget).find(([key]) => Number(key) === target)?.[1] ?? null;

const nameColumn = (values) => ({ key: "sae", label: "SAE", values, cell: (name) => saeLabel(name) });
const column = (key, label, format, values, intervals) => ({ key, label, format, values, intervals });
const withValues = (columns) => columns.filter((one) => one.values.some((value) => value !== null && value !== undefined));

function heading() {
  const input = shown(REPORT.input);
  const title =
    SAES.length === 1 ? `${shown(SAES[0].name)} measured on ${input}` : `${SAES.length} SAEs compared on ${input}`;
  document.title = title;
  const boot = REPORT.bootstrap;
  const search = REPORT.search && REPORT.search !== "none" ? `a search (${REPORT.search})` : "no search";
  const done = [
    `${shown(REPORT.rows, FORMATS.count)} rows of ${shown(REPORT.width, FORMATS.count)} values.`,
    `At several steps, the rows were encoded into a file, with ${search} and ${REPORT.residual ? "a" : "no"} residual ` +
      "layer, and decoded again; every size is that of such a file.",
    REPORT.metric ? `The metric of decoded rows is ${shown(REPORT.metric)}.` : "",
    boot && LEVEL
      ? `Intervals are ${LEVEL}: ${shown(boot.resamples, FORMATS.count)} bootstrap resamples of ` +
        `${shown(boot.blocks, FORMATS.count)} ${shown(boot.unit)}.`
      : "",
  ];
  return element("header", {}, element("h1", {}, title), element("p", { class: "lead" }, done.join(" ")));
}

// -- the verdict -------------------------------------------------------------------------------------------------------

/** Bits and interval by which `name` needs more than `best` (a difference is a's bits less b's). */
function difference(verdict, name, best) {
  for (const { a, b, bits, interval, tie } of list(verdict.differences).filter(Boolean)) {
    if (a === name && b === best) return { bits, interval, tie };
    if (a === best && b === name) {
      const turned = list(interval).length === 2 ? interval.map((value) => (isNumber(value) ? -value : null)).reverse() : null;
      return { bits: isNumber(bits) ? -bits : null, interval: turned, tie };
    }
  }
  return null;
}

function oneVerdict(sae, target) {
  const found = atTarget(sae.at, target);
  if (!found || !isNumber(found.bits_per_row)) {
    return element("p", {}, ...names([sae.name]), ` does not reach it${found?.missing ? `: ${found.missing}` : ""}.`);
  }
  const total = isNumber(found.total_bits_per_row)
    ? ` With the SAE’s decoder counted, it needs ${shown(found.total_bits_per_row, FORMATS.rate)} bits per row.`
    : "";
  const rows = isNumber(found.rows_to_break_even_raw)
    ? ` Files and decoder are smaller than the raw rows from ${shown(Math.ceil(found.rows_to_break_even_raw), FORMATS.count)} rows on.`
    : "";
  const bits = withInterval(found.bits_per_row, found.interval, FORMATS.rate);
  return element("p", {}, ...names([sae.name]), ` needs ${bits} bits per row.${total}${rows}`);
}

function comparedVerdict(verdict, target) {
  const best = verdict.mdl;
  if (!best) return element("p", {}, "No SAE reaches it.");
  const sae = SAES.find((one) => one.name === best);
  const found = atTarget(sae?.at, target) ?? {};
  const text = ["The MDL-SAE is ", ...names([best])];
  text.push(`, at ${withInterval(found.bits_per_row, found.interval, FORMATS.rate)} bits per row.`);
  const ties = list(verdict.ties).filter((name) => name !== best);
  if (ties.length) {
    text.push(" It is not told apart from ", ...names(ties), ": the interval of the difference holds zero.");
  }
  const others = SAES.filter((one) => one.name !== best && !ties.includes(one.name))
    .map((one) => ({ name: one.name, ...difference(verdict, one.name, best) }))
    .filter(({ bits }) => isNumber(bits))
    .sort((a, b) => a.bits - b.bits);
  if (others.length) {
    const [next] = others;
    const bits = withInterval(next.bits, next.interval, FORMATS.rate);
    text.push(" Next is ", ...names([next.name]), `, which needs ${bits} bits per row more.`);
  }
  if (verdict.mdl_with_sae === best) text.push(" It stays the best with its decoder’s bits counted.");
  else if (verdict.mdl_with_sae) {
    text.push(" With the decoder’s bits counted, it is ", ...names([verdict.mdl_with_sae]), ".");
  }
  return element("p", {}, ...text);
}

function targetTable(verdict, target) {
  const found = SAES.map((sae) => atTarget(sae.at, target) ?? {});
  const apart = SAES.map((sae) => difference(verdict, sae.name, verdict.mdl) ?? {});
  return sortable(
    `SAEs at NMSE ${target}`,
    withValues([
      nameColumn(SAES.map((sae) => sae.name)),
      column("bits_per_row", "bits per row", FORMATS.rate, found.map((at) => at.bits_per_row), found.map((at) => at.interval)),
      column("more", "more than the MDL-SAE", FORMATS.rate, apart.map((d) => d.bits), apart.map((d) => d.interval)),
      column("total", "with the decoder", FORMATS.rate, found.map((at) => at.total_bits_per_row)),
      column("even", "rows to break even", FORMATS.count, found.map((at) => (isNumber(at.rows_to_break_even_raw) ? Math.ceil(at.rows_to_break_even_raw) : null))),
      { ...column("missing", "not reached", FORMATS.value, found.map((at) => at.missing)), long: true },
    ]),
  );
}

function verdicts() {
  if (!TARGETS.length) return [];
  const several = SAES.length > 1;
  return [
    element("h2", {}, TARGETS.length > 1 ? "At each target" : "At the target"),
    several
      ? element(
          "p",
          {},
          "The MDL-SAE is the one that describes the rows in the fewest bits at the same NMSE. Rows to break even: from " +
            "how many rows on the files, SAE decoder included, are smaller than the raw rows.",
        )
      : null,
    ...TARGETS.flatMap((target) => {
      const verdict = atTarget(REPORT.at, target) ?? {};
      return [
        element("h3", {}, `NMSE ${shown(target, FORMATS.target)}`),
        several ? comparedVerdict(verdict, target) : SAES.map((sae) => oneVerdict(sae, target)),
        several ? targetTable(verdict, target) : null,
      ];
    }),
  ].flat();
}

// -- tables of SAEs and points -----------------------------------------------------------------------------------------

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
        column("n_latents", "latents", FORMATS.count, SAES.map((sae) => sae.n_latents)),
        column("l0", "L0", FORMATS.rate, SAES.map((sae) => sae.l0)),
        column("floor", "floor", FORMATS.nmse, SAES.map((sae) => sae.floor)),
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
    column(key, label, format, points.map((point) => point[key]), points.map((point) => point[interval]));
  const crossings = list(REPORT.crossings).filter(Boolean);
  return [
    points.length
      ? element(
          "details",
          {},
          element("summary", {}, `All ${shown(points.length)} files as a table`),
          sortable(
            "files",
            withValues([
              nameColumn(points.map((point) => point.sae)),
              column("step", "step", FORMATS.step, points.map((p) => p.step)),
              measured("bits_per_row", "bits per row", FORMATS.rate, "bits_interval"),
              measured("nmse", "NMSE", FORMATS.nmse, "nmse_interval"),
              column("nmse_median", "median of rows", FORMATS.nmse, points.map((p) => p.nmse_median)),
              column("l0", "L0", FORMATS.rate, points.map((p) => p.l0)),
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
            column("nmse", "NMSE", FORMATS.nmse, crossings.map((one) => one.nmse)),
            column("bits_per_row", "bits per row", FORMATS.rate, crossings.map((one) => one.bits_per_row)),
          ]),
        )
      : null,
  ];
}

function page() {
  document.querySelector("main").replaceChildren(
    ...[
      heading(),
      verdicts(),
      element("h2", {}, "Rate and distortion"),
      curveCharts(),
      pointTables(),
      saeTable(),
      detailSection(),
      element(
        "footer",
        {},
        `Made by saecodec ${shown(REPORT.version)}. The numbers of this page lie beside it as JSON.`,
      ),
    ]
      .flat()
      .filter(Boolean),
  );
  document.body.append(tip);
}

page();
