// The two-part description length of a measure: the rows, the prior and the SAE, by the precision of its decoder.

function twoPartSection() {
  const decoders = entries(REPORT.two_part?.with_sae).filter(([, one]) => one && typeof one === "object");
  if (!decoders.length) return [];
  const found = (key) => decoders.map(([, one]) => one[key]);
  const rate = REPORT.two_part.bits_per_row ?? {};
  const same = (value) => decoders.map(() => value);
  const pca = found("rows_to_break_even_pca");
  const never = REPORT.baselines?.pca && !pca.some(isNumber);
  return [
    element("h2", {}, "With the SAE counted"),
    element(
      "p",
      {},
      "A two-part description length, in bits per row: the rows, the tables of the prior, and the SAE’s decoder, by the " +
        `precision of its numbers. The last two are paid once, here for ${shown(REPORT.rows, FORMATS.count)} rows. “Even ` +
        "with” is the number of rows from which on all three are smaller than the raw rows, or than PCA’s bytes and " +
        `model${never ? ", which they never are." : "; a dash where they never are."}`,
    ),
    sortable(
      "two-part description length",
      withValues([
        column(
          "precision",
          "decoder in",
          FORMATS.value,
          decoders.map(([name]) => name),
        ),
        column("data", "rows", FORMATS.rate, same(rate.data)),
        column("prior", "prior", FORMATS.rate, same(rate.prior)),
        column("sae", "SAE", FORMATS.rate, found("sae_bits_per_row")),
        column("total", "total", FORMATS.rate, found("total_bits_per_row")),
        column("even", "even with\nraw rows", FORMATS.count, found("rows_to_break_even_raw").map(wholeRows)),
        column("even_pca", "even with\nPCA", FORMATS.count, pca.map(wholeRows)),
      ]),
    ),
  ];
}
