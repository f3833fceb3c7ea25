// One SAE in detail, chosen by its name: where its bytes go, its latents, its worst rows.

const PAIRS = {
  near_duplicates: [
    "Near-duplicates",
    "Pairs of latents that fire in nearly the same rows; saved is what an ideal joint code of the pair would save.",
  ],
  parents: [
    "Parents and children",
    "Latents that fire hardly ever without their parent; saved is what an ideal joint code of the pair would save.",
  ],
};

/** Bytes by part, one file a row; what the parts do not explain is a part of its own, so that each row adds up. */
function bytesTable(points) {
  const parts = [
    ...new Set(
      points.flatMap((point) => entries(point.bytes).flatMap(([part, size]) => (isPositive(size) ? [part] : []))),
    ),
  ];
  const size = (point, part) => (isNumber(point.bytes?.[part]) ? point.bytes[part] : 0);
  const sum = (point) => parts.reduce((total, part) => total + size(point, part), 0);
  const rest = points.map((point) => (isNumber(point.file_bytes) ? point.file_bytes - sum(point) : 0));
  return sortable("bytes by part", [
    column(
      "step",
      "step",
      FORMATS.step,
      points.map((point) => point.step),
    ),
    ...parts.map((part) =>
      column(
        part,
        PARTS[part] ?? part,
        FORMATS.count,
        points.map((point) => size(point, part)),
      ),
    ),
    ...(rest.some((value) => value !== 0) ? [column("rest", "other", FORMATS.count, rest)] : []),
    column(
      "total",
      "total",
      FORMATS.count,
      points.map((point, i) => sum(point) + rest[i]),
    ),
  ]);
}

/** A heading, a sentence and a table, or nothing where the report has no such rows. */
function tableSection(title, words, table, columnWords = {}) {
  const columns = columnsOf(table?.columns, columnWords);
  if (!columns.length) return [];
  return [element("h3", {}, title), words ? element("p", {}, words) : null, sortable(title, columns)];
}

function latentsSection(latents) {
  const rest =
    isNumber(latents?.shown) && isNumber(latents?.of) && latents.shown < latents.of
      ? ` These are ${shown(latents.shown, FORMATS.count)} of ${shown(latents.of, FORMATS.count)}; ` +
        `the others take ${shown(latents.rest_bits, FORMATS.bits)} bits per row together.`
      : "";
  return tableSection(
    "Latents",
    "What each latent takes of a row’s bits on average, and what it is for: how far the NMSE rises without it, and " +
      `the bits paid for that.${rest}`,
    latents,
  );
}

function details(sae) {
  const detail = sae.detail;
  const points = list(sae.points).filter(Boolean);
  const parts = [];
  if (points.length) {
    parts.push(
      element("h3", {}, "Bytes by part"),
      element("p", {}, "What each file’s bytes are spent on; parts that no file has are left out."),
      bytesTable(points),
    );
  }
  if (!detail) {
    parts.push(element("p", { class: "note" }, "Nothing more was measured of this SAE."));
    return parts;
  }
  if (isNumber(detail.step)) {
    parts.push(
      element("p", { class: "note" }, `What follows is of its file at step ${shown(detail.step, FORMATS.step)}.`),
    );
  }
  parts.push(
    histogramFigures(detail.histograms),
    ...latentsSection(detail.latents),
    ...tableSection(
      "Worst rows",
      "The rows with the largest squared error, and their part of all rows’ error.",
      detail.worst_rows,
      {
        bits: ["bits", FORMATS.bits],
      },
    ),
    ...tableSection("Groups", "Bits and error by group of rows.", detail.groups),
    ...entries(detail.pairs).flatMap(([key, table]) =>
      tableSection(...(PAIRS[key] ?? [key.replaceAll("_", " "), ""]), table),
    ),
  );
  return parts;
}

function detailSection() {
  if (!SAES.length) return [];
  const best = TARGETS.map((target) => atTarget(REPORT.at, target)?.mdl).find(Boolean);
  const first = Math.max(
    0,
    [SAES.findIndex((sae) => sae.detail && sae.name === best), SAES.findIndex((sae) => sae.detail)].find(
      (i) => i >= 0,
    ) ?? 0,
  );
  const body = element("section", { id: "details", "aria-live": "polite" });
  const title = element("h2", {});
  const show = (i) => {
    hideTip();
    title.replaceChildren(...breakable(shown(SAES[i].name)), " in detail");
    body.replaceChildren(...details(SAES[i]).filter(Boolean));
  };
  const select = element(
    "select",
    { id: "sae" },
    SAES.map((sae, i) => element("option", { value: i, selected: i === first ? "" : null }, shown(sae.name))),
  );
  select.addEventListener("change", () => show(Number(select.value)));
  show(first);
  return [title, SAES.length > 1 ? element("label", { class: "choice" }, "SAE shown in detail", select) : null, body];
}
