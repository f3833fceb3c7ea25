// Elements, and numbers as people read them. Text goes in as text nodes only, never as markup: names are not trusted.

const SVG = "http://www.w3.org/2000/svg";
const DASH = "–";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const element = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const drawn = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isPositive = (value) => isNumber(value) && value > 0;
const list = (value) => (Array.isArray(value) ? value : []);
const entries = (value) => (value && typeof value === "object" ? Object.entries(value) : []);

const fixed = (digits) => (value) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
/** `digits` digits, in powers of ten where they would stand behind many zeros. */
const significant = (digits) => (value) => {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 10 ** digits) return fixed(0)(value);
  return size < 1e-3 ? value.toExponential(digits - 1) : value.toPrecision(digits);
};

const FORMATS = {
  id: (value) => String(value),
  count: (value) => (Number.isInteger(value) ? fixed(0)(value) : fixed(1)(value)),
  bits: (value) => (Math.abs(value) >= 100 && Math.abs(value) < 1000 ? fixed(1)(value) : significant(3)(value)),
  rate: fixed(1),
  nmse: (value) =>
    value < 0.001 ? significant(2)(value) : value < 10 ? value.toFixed(4) : fixed(value < 1000 ? 1 : 0)(value),
  percent: (value) => `${significant(3)(100 * value)} %`,
  similarity: fixed(3),
  step: (value) => String(Number(value.toPrecision(4))),
  target: (value) => String(value),
  value: (value) => (Number.isInteger(value) ? fixed(0)(value) : significant(4)(value)),
};

/** A value of the report as text; `format` is for its numbers. */
function shown(value, format = FORMATS.value) {
  if (value === null || value === undefined) return DASH;
  if (isNumber(value)) return format(value);
  if (Array.isArray(value)) return value.some(isNumber) ? `[${value.map((v) => shown(v, format)).join(", ")}]` : DASH;
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
}

/** "241.2 [239.0, 243.1]", or without the interval where none was measured. */
function withInterval(value, interval, format) {
  return list(interval).some(isNumber) ? `${shown(value, format)} ${shown(interval, format)}` : shown(value, format);
}

/** Names as a sentence lists them, each in a <strong>. */
function names(values) {
  return values.flatMap((value, i) => [
    i === 0 ? "" : i === values.length - 1 ? " and " : ", ",
    element("strong", {}, breakable(value)),
  ]);
}

/** A name with a place to break a line behind each underscore and slash, so that none is broken inside a word. */
function breakable(text) {
  const parts = String(text).match(/[^_/]*[_/]+|[^_/]+/g) ?? [];
  return parts.flatMap((part, i) => (i ? [element("wbr"), part] : [part]));
}

/** The last part of a path. */
const baseName = (path) => String(path).match(/[^/\\]+(?=[/\\]*$)/)?.[0] ?? String(path);

// -- the tooltip: one for the page, shown by mouse, touch or focus ----------------------------------------------------

const tip = element("div", { class: "tip", id: "tip", role: "tooltip", hidden: "" });
let tipOf = null;

function placeTip() {
  if (!tipOf) return;
  const at = tipOf.getBoundingClientRect();
  if (!tipOf.isConnected || at.bottom < 0 || at.top > innerHeight) {
    hideTip();
    return;
  }
  const left = at.left + at.width / 2 - tip.offsetWidth / 2;
  const above = at.top - tip.offsetHeight - 6;
  const top = above >= 8 ? above : Math.min(at.bottom + 6, innerHeight - tip.offsetHeight - 8);
  tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function showTip(node, content) {
  if (tipOf && tipOf !== node) hideTip();
  tipOf = node;
  node.setAttribute("aria-describedby", "tip");
  tip.replaceChildren(...content());
  tip.hidden = false;
  placeTip();
}

function hideTip() {
  tipOf?.removeAttribute("aria-describedby");
  tipOf = null;
  tip.hidden = true;
}

/** Show content() beside `node` under the pointer, a finger or the focus. */
function withTip(node, content) {
  const show = () => showTip(node, content);
  node.addEventListener("pointerenter", show);
  node.addEventListener("focus", show);
  node.addEventListener("click", show);
  node.addEventListener("blur", hideTip);
  node.addEventListener("pointerleave", (event) => {
    // A finger "leaves" as soon as it is lifted, and what it asked for should stay.
    if (event.pointerType !== "touch" && document.activeElement !== node) hideTip();
  });
}

document.addEventListener("pointerdown", (event) => tipOf?.contains(event.target) || hideTip());
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
addEventListener("scroll", placeTip, { capture: true, passive: true });
addEventListener("resize", placeTip);

/** The rows of a tooltip: [label, text, key], the key for whoever looks for one. */
function tipTable(rows) {
  return element(
    "table",
    {},
    element(
      "tbody",
      {},
      rows.map(([label, text, key, kind]) =>
        element(
          "tr",
          { "data-key": key, class: kind },
          element("th", { scope: "row" }, label),
          element("td", {}, text),
        ),
      ),
    ),
  );
}
