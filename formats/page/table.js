// Tables that sort by any column: by click, or by Enter or Space on its header.

/** What a column is called, and how its numbers are written; columns that are not here show their own name. */
const COLUMNS = {
  latent: ["latent", FORMATS.id],
  rate: ["rate", FORMATS.percent],
  bits: ["bits per row", FORMATS.bits],
  support: ["support", FORMATS.bits],
  levels: ["levels", FORMATS.bits],
  removal_nmse: ["NMSE of removal", significant(3)],
  bits_per_nmse: ["bits per NMSE", FORMATS.bits],
  row: ["row", FORMATS.id],
  sequence: ["sequence", FORMATS.id],
  position: ["position", FORMATS.id],
  squared_error: ["squared error", significant(4)],
  share: ["share of the error", FORMATS.percent],
  group: ["group", FORMATS.id],
  rows: ["rows", FORMATS.count],
  nmse: ["NMSE", FORMATS.nmse],
  a: ["latent", FORMATS.id],
  b: ["other latent", FORMATS.id],
  jaccard: ["Jaccard", FORMATS.similarity],
  cosine: ["cosine", FORMATS.similarity],
  saved: ["bits per row saved", significant(3)],
  child: ["child", FORMATS.id],
  parent: ["parent", FORMATS.id],
  given: ["P(parent\u00a0|\u00a0child)", FORMATS.similarity],
  rate_child: ["rate of the child", FORMATS.percent],
  rate_parent: ["rate of the parent", FORMATS.percent],
};

/** {name: values} of the report as the columns of `sortable`; columns without a value are left out. */
function columnsOf(columns, words = {}) {
  return entries(columns)
    .filter(([, values]) => list(values).some((value) => value !== null))
    .map(([key, values]) => {
      const [label, format] = words[key] ?? COLUMNS[key] ?? [key.replaceAll("_", " "), FORMATS.value];
      return { key, label, format, values };
    });
}

/** Of two values, nulls last in both directions; text by its numbers ("row 9" before "row 10"). */
function compared(a, b, sign) {
  const [left, right] = [a ?? null, b ?? null];
  if (left === null || right === null) return (left === null) - (right === null);
  if (isNumber(left) && isNumber(right)) return sign * (left - right);
  return sign * String(left).localeCompare(String(right), "en", { numeric: true });
}

/** A long header in two lines, cut at the space nearest to its middle. */
function balanced(label) {
  const spaces = [...label.matchAll(/ /g)].map((match) => match.index);
  if (label.length < 13 || label.includes("\n") || !spaces.length) return label;
  const middle = (label.length - 1) / 2;
  const cut = spaces.reduce((best, at) => (Math.abs(at - middle) < Math.abs(best - middle) ? at : best));
  return `${label.slice(0, cut)}\n${label.slice(cut + 1)}`;
}

/** columns: {key, label, format, values, intervals, cell}: `cell` makes a node of a value where text will not do. */
function sortable(label, columns) {
  const count = Math.max(0, ...columns.map((column) => column.values.length));
  const textual = columns.map((column) => column.values.some((value) => typeof value === "string"));
  const kind = (i) => (columns[i].cell ? "text name" : textual[i] ? (columns[i].long ? "text long" : "text") : null);
  const rows = Array.from({ length: count }, (_, j) =>
    element(
      "tr",
      {},
      columns.map((column, i) => {
        const value = column.values[j] ?? null;
        const text = withInterval(value, column.intervals?.[j], column.format);
        return element("td", { class: kind(i) }, column.cell && value !== null ? column.cell(value) : text);
      }),
    ),
  );
  const order = Array.from(rows.keys());
  const body = element("tbody", {}, rows);
  const headers = columns.map((column, i) => {
    const button = element("button", { type: "button" }, balanced(column.label));
    const header = element("th", { scope: "col", "aria-sort": "none", "data-key": column.key, class: kind(i) }, button);
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const down = before === "none" ? !textual[i] : before === "ascending";
      headers.forEach((other) =>
        other.setAttribute("aria-sort", other === header ? (down ? "descending" : "ascending") : "none"),
      );
      order.sort((a, b) => compared(column.values[a], column.values[b], down ? -1 : 1));
      body.append(...order.map((j) => rows[j]));
    });
    return header;
  });
  const table = element("table", {}, element("thead", {}, element("tr", {}, headers)), body);
  return element(
    "div",
    { class: count > 30 ? "scroll cut" : "scroll", tabindex: "0", role: "region", "aria-label": label },
    table,
  );
}

const nameColumn = (values) => ({ key: "sae", label: "SAE", values, cell: (name) => saeLabel(name) });
const column = (key, label, format, values, intervals) => ({ key, label, format, values, intervals });
const withValues = (columns) =>
  columns.filter((one) => one.values.some((value) => value !== null && value !== undefined));
