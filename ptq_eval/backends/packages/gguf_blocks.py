"""Our codes and scales as the bytes of GGUF's blocks, written from the layouts that the `gguf` package reads."""

import numpy as np

from quantizers import QuantizedWeight


def as_bytes(q: QuantizedWeight) -> np.ndarray:
    """The rows of a layer whose columns fill whole blocks, uint8 [out, bytes]."""
    stored = {name: t.numpy() for name, t in q.stored_scales().items()}
    return _PACK[q.scheme.format](q.codes.numpy(), stored)


def _bytes(*parts):
    return np.concatenate([np.ascontiguousarray(p).view(np.uint8) for p in parts], -1).reshape(len(parts[0]), -1)


def _nibbles(codes, size=32):
    """Blocks [..., size]: the first half in the low, the second in the high nibbles."""
    low, high = codes[..., : size // 2] & 15, codes[..., size // 2 :] & 15
    return (low | high << 4).astype(np.uint8)


def _legacy(codes, stored):
    blocks = codes.reshape(len(codes), -1, 32)
    heads = [stored[name][..., None] for name in ("scale", "minimum") if name in stored]
    if blocks.max() < 16:
        return _bytes(*heads, _nibbles(blocks))
    high = np.packbits(blocks >> 4, axis=-1, bitorder="little")
    return _bytes(*heads, high, _nibbles(blocks))


def _q8_0(codes, stored):
    return _bytes(stored["scale"][..., None], codes.reshape(len(codes), -1, 32))


def _mxfp4(codes, stored):
    return _bytes(stored["scale"][..., None], _nibbles(codes.reshape(len(codes), -1, 32)))


def _nvfp4(codes, stored):
    blocks = _nibbles(codes.reshape(len(codes), -1, 4, 16), 16)
    return _bytes(stored["scale"].reshape(len(codes), -1, 4), blocks.reshape(*blocks.shape[:2], 32))


def _fields(codes, bits, lanes, width):
    """Blocks of 256 in runs of lanes × width: lane s of a run in bits [s·bits, (s + 1)·bits) of `width` bytes."""
    runs = codes.reshape(*codes.shape[:-1], -1, lanes, width).astype(np.uint16)
    packed = sum((runs[..., lane, :] & (2**bits - 1)) << lane * bits for lane in range(lanes))
    return packed.astype(np.uint8).reshape(*codes.shape[:-1], -1)


def _blocks(codes, stored, count):
    shape = (len(codes), -1, 256)
    found = {name: t.reshape(len(codes), -1, 1 if name.startswith("block") else count) for name, t in stored.items()}
    return codes.reshape(shape), found


def _q2_k(codes, stored):
    blocks, s = _blocks(codes, stored, 16)
    scales = (s["scale"] | s["minimum"] << 4).astype(np.uint8)
    return _bytes(scales, _fields(blocks, 2, 4, 32), s["block_scale"], s["block_minimum"])


def _q3_k(codes, stored):
    blocks, s = _blocks(codes, stored, 16)
    raw = (s["scale"].astype(np.int16) + 32).astype(np.uint8)
    low = (raw[..., :8] & 15) | (raw[..., 8:] & 15) << 4
    high = sum((raw[..., 4 * k : 4 * k + 4] >> 4) << 2 * k for k in range(4))
    return _bytes(
        _fields(blocks >> 2, 1, 8, 32), _fields(blocks, 2, 4, 32), low, high.astype(np.uint8), s["block_scale"]
    )


def _six_bits(scale, minimum):
    scale, minimum = scale.astype(np.uint8), minimum.astype(np.uint8)
    first = scale[..., :4] | (scale[..., 4:] >> 4) << 6
    second = minimum[..., :4] | (minimum[..., 4:] >> 4) << 6
    return np.concatenate([first, second, (scale[..., 4:] & 15) | (minimum[..., 4:] & 15) << 4], -1)


def _q4_k(codes, stored):
    blocks, s = _blocks(codes, stored, 8)
    packed = _six_bits(s["scale"], s["minimum"])
    return _bytes(s["block_scale"], s["block_minimum"], packed, _fields(blocks, 4, 2, 32))


def _q5_k(codes, stored):
    blocks, s = _blocks(codes, stored, 8)
    packed = _six_bits(s["scale"], s["minimum"])
    high = _fields(blocks >> 4, 1, 8, 32)
    return _bytes(s["block_scale"], s["block_minimum"], packed, high, _fields(blocks, 4, 2, 32))


def _q6_k(codes, stored):
    blocks, s = _blocks(codes, stored, 16)
    return _bytes(_fields(blocks, 4, 2, 64), _fields(blocks >> 4, 2, 4, 32), s["scale"], s["block_scale"])


_PACK = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1"), _legacy),
    "q8_0": _q8_0,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
