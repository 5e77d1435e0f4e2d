"""Slow: the scale searches of llama.cpp's K-quants for one group, weight by weight, in float64."""


def _best(value, low, high):
    return min(max(round(value), low), high)


def affine(x, top, first, count):
    """Scale and minimum (≥ 0, subtracted) for codes 0 … top, under the weights rms + |x|."""
    rms = (sum(v * v for v in x) / len(x)) ** 0.5
    weights = [rms + abs(v) for v in x]
    low, high = min(0.0, *x), max(x)

    def error(scale, offset, codes):
        return sum(w * (scale * c + offset - v) ** 2 for w, c, v in zip(weights, codes, x))

    step = (high - low) / top
    best = step, low
    least = error(*best, [_best((v - low) / step, 0, top) for v in x])
    for k in range(count + 1):
        codes = [_best((v - low) * (top + first + 0.1 * k) / (high - low), 0, top) for v in x]
        sw, swl = sum(weights), sum(w * c for w, c in zip(weights, codes))
        swl2, swx = sum(w * c * c for w, c in zip(weights, codes)), sum(w * v for w, v in zip(weights, x))
        swxl = sum(w * v * c for w, v, c in zip(weights, x, codes))
        det = sw * swl2 - swl * swl
        if det <= 0:
            continue
        scale, offset = (sw * swxl - swx * swl) / det, (swl2 * swx - swl * swxl) / det
        if offset > 0:
            scale, offset = swxl / swl2, 0.0
        found = error(scale, offset, codes)
        if found < least:
            least, best = found, (scale, offset)
    return best[0], -best[1]


def symmetric(x, half):
    """The signed scale for codes −half … half − 1, under the weights x²."""
    extreme = max(x, key=abs)
    best, scale = -1.0, 0.0
    for k in (0, *range(-9, 0), *range(1, 10)):
        codes = [_best(-(half + 0.1 * k) * v / extreme, -half, half - 1) for v in x]
        product = sum(v**3 * c for v, c in zip(x, codes))
        square = sum(v * v * c * c for v, c in zip(x, codes))
        if square and product * product / square > best:
            best, scale = product * product / square, product / square
    return scale
