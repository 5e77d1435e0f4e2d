"""Contract: in a user's table every number format is a curve of its own, also where bits are equal."""

import numpy as np

from ptq_eval import fit_data


def table():
    """Two formats of 4 bits beside integers of 3: one with a delta forty times that of the other."""
    D = np.tile(np.geomspace(1e6, 1e9, 8), 3)
    names = np.repeat(["int", "nvfp4", "mxfp4"], 8)
    bits, factor = np.repeat([3.0, 4.0, 4.0], 8), np.repeat([10.0, 1.0, 120.0], 8)
    delta = factor * 1e-3 * (D / 1e6) ** 0.5 * np.exp(-bits / 2)
    loss = 2.0 + 60 * D**-0.3
    return {"run": np.full(24, "a"), "params": np.full(24, 1e6), "tokens": D, "bits": bits, "format": names,
            "loss_fp": loss, "delta": delta, "effective_bits": np.repeat([3.2, 4.5, 4.25], 8),
            "gaussian_mse": np.repeat([0.04, 0.0091, 0.0132], 8)}  # fmt: skip


def test_formats_of_equal_bits_have_turns_of_their_own():
    found = fit_data(table(), "chinchilla_d,ratio", bootstrap=0).fit
    seen = {(entry["group"]["format"], entry["bits"]): entry["observed_tokens"] for entry in found["critical_tokens"]}
    assert set(seen) == {("int", 3), ("nvfp4", 4), ("mxfp4", 4)}
    columns = table()
    for (name, _), tokens in seen.items():
        own = columns["format"] == name
        after = columns["loss_fp"][own] + columns["delta"][own]
        assert tokens == columns["tokens"][own][after.argmin()]
    assert seen["mxfp4", 4] < seen["nvfp4", 4]
    assert any("mxfp4, nvfp4 have the same bits" in text for text in found["warnings"])


def test_with_one_format_nothing_is_named():
    columns = {name: values[:8] for name, values in table().items()}
    found = fit_data(columns, "chinchilla_d,ratio", bootstrap=0, fixed={"gamma_post": 2.0}).fit
    assert [entry["group"] for entry in found["critical_tokens"]] == [{}]


def test_a_table_is_fitted_on_an_axis():
    effective = fit_data(table(), "ratio", bits_axis="effective", bootstrap=0)
    assert effective.fit["data"]["columns"] == {"P": "effective_bits"}
    assert set(effective.parts[0].mapped.data["P"]) == {3.2, 4.5, 4.25}
    gaussian = fit_data(table(), "ratio", bits_axis="gaussian", bootstrap=0)
    assert set(gaussian.parts[0].mapped.data["P"]) == {-0.5 * np.log2(mse) for mse in (0.04, 0.0091, 0.0132)}
    assert not any("have the same bits" in text for text in gaussian.fit["warnings"])
