// Other codes of the same rows beside the files: those of the paper (arXiv 2410.11179), PCA, and others' estimates.

const REAL = "real bytes";
const ESTIMATE = "estimate";

/** A sentence for each code, by the key that its rows have. */
const CODES = {
  l0: [
    "L0 (B + log2 F)",
    "Each nonzero names its latent, one of F, and takes B bits for its level, the same number for every level.",
  ],
  entropies: [
    "Sum of entropies",
    "The entropy of each latent’s level, zero among the levels, as if latents knew nothing of each other.",
  ],
  mdl: [
    "SAEBench mdl",
    "The entropy of activations in a few bins, the same for any target; the NMSE is what its bins decode to.",
  ],
  dense: [
    "Dense, fixed length",
    "Every value of a row, rounded to one step, in as many bits as the range of its dimension needs.",
  ],
  entropy: ["Dense, entropy", "The same rounded values, each at the entropy of its dimension."],
  one_hot: [
    "One-hot",
    "A row is the index of an exemplar, and every row is one: the dense code and an index on top of it.",
  ],
  exemplars: [
    "Nearest exemplar",
    "A row is the index of the nearest of N rows drawn at random, at the NMSE that this reaches; the dense code stores " +
      "the N rows, and all rows share them.",
  ],
  pca: [
    "PCA",
    "Principal components of these rows, rounded to one step and range coded: a real codec, without an SAE.",
  ],
};

const MEASURE = REPORT.kind === "measure";

/** The codes without an SAE at a target; those of a measure are at the NMSE of its file, and its target is null. */
const baselinesAt = (target) => (MEASURE ? REPORT.baselines : atTarget(REPORT.baselines, target)) ?? {};

/** The file of an SAE that is nearest to a target, in logarithms. */
function nearestPoint(sae, target) {
  const points = list(sae.points).filter(Boolean);
  if (target === null) return points[0] ?? {};
  const gap = (point) => (isPositive(point.nmse) ? Math.abs(Math.log(point.nmse / target)) : Infinity);
  return points.reduce((best, point) => (gap(point) < gap(best) ? point : best), points[0] ?? {});
}

const saebenchOf = (sae) => sae.saebench ?? (MEASURE ? REPORT.baselines?.saebench : null) ?? {};

/** What is estimated of an SAE's file, by key: bits per row, and the NMSE that goes with them. */
function estimatesOf(sae, target) {
  const point = nearestPoint(sae, target);
  const { chosen } = saebenchOf(sae);
  return {
    l0: { bits: point.estimates?.l0_formula, nmse: point.nmse },
    entropies: { bits: point.estimates?.sum_entropy, nmse: point.nmse },
    mdl: { bits: chosen?.mdl_bits, nmse: chosen?.nmse },
  };
}

/** What PCA really takes at the targets, which the chart shows beside the curves. */
const pcaPoints = () =>
  (MEASURE ? [null] : TARGETS)
    .map((target) => baselinesAt(target).pca)
    .filter((pca) => isPositive(pca?.nmse) && isPositive(pca.bits_per_row))
    .sort((a, b) => a.nmse - b.nmse);

const ratio = (bits, other) => (isNumber(bits) && isPositive(other) ? bits / other : null);

/** Bits per row of a file less the decoder that it may hold: no other code has what it decodes with in its bits. */
const withoutDecoder = ({ bits_per_row: bits, bytes }) =>
  isNumber(bits) && isPositive(bytes?.decoder) ? bits - (8 * bytes.decoder) / REPORT.rows : bits;

/** The row that others stand beside: the MDL-SAE's files at the target, or the file that was measured. */
function ownRow(target) {
  const name = MEASURE ? SAES[0]?.name : (atTarget(REPORT.at, target) ?? {}).mdl;
  const sae = SAES.find((one) => one.name === name);
  if (!sae) return null;
  const point = nearestPoint(sae, target);
  const bits = MEASURE ? withoutDecoder(point) : atTarget(sae.at, target)?.bits_per_row;
  return {
    code: name,
    bits,
    nmse: MEASURE ? point.nmse : target,
    what: REAL,
    model: sae.decoder?.[REPORT.weights]?.bytes,
    own: true,
  };
}

/** The codes that a target has figures of, one row each. */
function codeRows(target) {
  const { dense, one_hot: oneHot, exemplars, pca } = baselinesAt(target);
  const rows = [];
  const add = (key, found, bits, more = {}) =>
    isNumber(bits) && rows.push({ key, code: CODES[key][0], bits, nmse: found.nmse, what: ESTIMATE, ...more });
  if (SAES.length === 1) {
    for (const [key, found] of Object.entries(estimatesOf(SAES[0], target))) add(key, found, found.bits);
  }
  add("dense", dense, dense?.bits_per_row);
  add("entropy", dense, dense?.entropy_per_row);
  add("one_hot", oneHot, oneHot?.bits_per_row);
  const most = list(exemplars).at(-1);
  add("exemplars", most, most?.bits_per_row, { code: `Nearest of ${shown(most?.n_exemplars)} exemplars` });
  add("pca", pca, pca?.bits_per_row, { what: REAL, model: pca?.model_bytes });
  return rows;
}

function codeTable(rows, own, label) {
  const all = own ? [own, ...rows] : rows;
  const values = (key) => all.map((row) => row[key]);
  const code = { ...column("code", "code", FORMATS.value, values("code")) };
  code.cell = (text) => (text === own?.code ? saeLabel(text) : text);
  const ratios = all.map((row) => (row.own ? null : ratio(own?.bits, row.bits)));
  return sortable(
    label,
    withValues([
      code,
      column("bits_per_row", "bits per row", FORMATS.rate, values("bits")),
      column("ratio", `${SAES.length > 1 ? "MDL-SAE" : "file"} / it`, FORMATS.similarity, ratios),
      column("nmse", "NMSE", FORMATS.nmse, values("nmse")),
      column("what", "what it is", FORMATS.value, values("what")),
      column("model", "model bytes", FORMATS.count, values("model")),
    ]),
  );
}

/** A row for each SAE: the estimates, and its file that is nearest to the target as a share of them. */
function estimateTable(target) {
  const points = SAES.map((sae) => nearestPoint(sae, target));
  const found = SAES.map((sae) => estimatesOf(sae, target));
  const words = { l0: "L0\nformula", entropies: "sum of\nentropies", mdl: "SAEBench\nmdl" };
  const estimates = Object.entries(words).flatMap(([key, label]) => [
    column(
      key,
      label,
      FORMATS.rate,
      found.map((one) => one[key].bits),
    ),
    column(
      `${key}_ratio`,
      "file\n/ it",
      FORMATS.similarity,
      found.map((one, i) => ratio(points[i].bits_per_row, one[key].bits)),
    ),
  ]);
  if (!found.some((one) => Object.values(one).some(({ bits }) => isNumber(bits)))) return null;
  return sortable(
    `estimates at NMSE ${target}`,
    withValues([
      nameColumn(SAES.map((sae) => sae.name)),
      column(
        "nmse",
        "NMSE",
        FORMATS.nmse,
        points.map((point) => point.nmse),
      ),
      column(
        "file",
        "file",
        FORMATS.rate,
        points.map((point) => point.bits_per_row),
      ),
      ...estimates,
      column(
        "mdl_nmse",
        "mdl decodes\nto NMSE",
        FORMATS.nmse,
        found.map((one) => one.mdl.nmse),
      ),
    ]),
  );
}

/** What SAEBench's number leaves out: what is said of all SAEs once, the rest by SAE. */
function distortionsList() {
  const said = SAES.map((sae) => ({ name: sae.name, sentences: list(saebenchOf(sae).distortions).filter(Boolean) }));
  const some = said.filter(({ sentences }) => sentences.length);
  if (!some.length) return null;
  const shared = some[0].sentences.filter((sentence) => some.every(({ sentences }) => sentences.includes(sentence)));
  const bullets = (sentences) =>
    element(
      "ul",
      {},
      sentences.map((sentence) => element("li", {}, shown(sentence))),
    );
  return element(
    "details",
    {},
    element("summary", {}, "What SAEBench’s mdl leaves out or takes otherwise"),
    shared.length ? bullets(shared) : null,
    some.flatMap(({ name, sentences }) => {
      const own = sentences.filter((sentence) => !shared.includes(sentence));
      return own.length ? [element("p", {}, "Of ", ...names([name]), ":"), bullets(own)] : [];
    }),
  );
}

function codeTerms(keys) {
  return element(
    "dl",
    {},
    Object.entries(CODES)
      .filter(([key]) => keys.has(key))
      .flatMap(([, [term, sentence]]) => [element("dt", {}, term), element("dd", {}, sentence)]),
  );
}

const NOT_HAD = { dense: "dense and one-hot codes", exemplars: "exemplars", pca: "PCA" };

function baselinesSection() {
  const several = SAES.length > 1;
  const keys = new Set();
  const parts = (MEASURE ? [null] : TARGETS).flatMap((target) => {
    const rows = codeRows(target);
    const table = several ? estimateTable(target) : null;
    const reasons = entries(baselinesAt(target).missing).filter(([, reason]) => typeof reason === "string");
    if (!rows.length && !table && !reasons.length) return [];
    rows.forEach(({ key }) => keys.add(key));
    if (table) ["l0", "entropies", "mdl"].forEach((key) => keys.add(key));
    const at = target === null ? "" : ` at NMSE ${target}`;
    return [
      target === null ? null : element("h3", {}, `NMSE ${shown(target, FORMATS.target)}`),
      rows.length ? codeTable(rows, ownRow(target), `other codes${at}`) : null,
      reasons.map(([code, reason]) => element("p", { class: "note" }, `Without ${NOT_HAD[code] ?? code}: ${reason}.`)),
      table ? element("p", {}, "What is estimated of each SAE’s file that is nearest to this NMSE:") : null,
      table,
    ];
  });
  if (!parts.length) return [];
  const embedded = MEASURE && SAES.length === 1 && isPositive(nearestPoint(SAES[0], null).bytes?.decoder);
  const modelled = (MEASURE ? [null] : TARGETS).some((target) => isNumber(baselinesAt(target).pca?.model_bytes));
  const sampled = (MEASURE ? [null] : TARGETS).map((target) => baselinesAt(target).sample_rows).find(isNumber);
  return [
    element("h2", {}, "Beside other codes"),
    element(
      "p",
      {},
      "What other codes of the same rows take. Real bytes were written and decoded again; for an estimate nothing was " +
        "encoded. Below 1, the file is shorter than the code it stands beside.",
      modelled ? " Model bytes are paid once, and are not in the bits per row." : "",
      embedded ? " So the SAE’s decoder, which the file holds, is not in the file’s bits here." : "",
      sampled < REPORT.rows
        ? ` Codes without an SAE were fitted on ${shown(sampled, FORMATS.count)} of the rows, taken from all over them.`
        : "",
    ),
    ...parts,
    codeTerms(keys),
    distortionsList(),
  ].flat();
}
