// The report that the page holds, and what its modules ask of it.

const REPORT = JSON.parse(document.getElementById("report").textContent);
const SAES = list(REPORT.saes).filter((sae) => sae && typeof sae === "object");
const TARGETS = list(REPORT.targets).filter(isNumber);
const FRONT = SAES.length > 1 ? list(REPORT.pareto).filter(Boolean) : [];
const LEVEL = isNumber(REPORT.bootstrap?.level) ? `${shown(100 * REPORT.bootstrap.level)} %` : null;

/** The entry of {"0.12": ...} for a target, however the number was written. */
const atTarget = (entriesByTarget, target) =>
  entries(entriesByTarget).find(([key]) => Number(key) === target)?.[1] ?? null;
