#!/usr/bin/env python3
"""Golden vectors for the weight formats: random blocks and what gguf-py makes of them.

    pip install gguf==0.19.0 numpy
    python tools/goldens/quant_goldens.py tests/fixtures/quant

Writes blocks.bin (decode) and encoded.bin (encode), each a sequence of records, all little endian:
    u32 ggml type id, u32 number of block bytes, u32 number of values, the block bytes, the values as f32.
Seeds are fixed: the same gguf-py writes the same bytes.
"""
import pathlib
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

# Where each block keeps its half-precision fields: random bits there would be NaN now and then.
HALVES = {
    T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0], T.MXFP4: [],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ1_S: [0], T.IQ1_M: [], T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ4_XS: [0],
    T.TQ1_0: [52], T.TQ2_0: [64],
    T.NVFP4: [],
}
ENCODED = [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]


def random_half(rng):
    return np.float16(rng.choice([-1, 1]) * 2.0 ** rng.uniform(-12, 2))


def random_blocks(ty, n, rng):
    size = GGML_QUANT_SIZES[ty][1]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for block in blocks:
        for at in HALVES.get(ty, []):
            block[at:at + 2] = np.frombuffer(random_half(rng).tobytes(), np.uint8)
        if ty == T.MXFP4:
            block[0] = rng.integers(100, 140)
        if ty == T.IQ1_M:  # the half is spread over the top bits of four words
            bits = int(np.frombuffer(random_half(rng).tobytes(), "<u2")[0])
            for i in range(4):
                at = 48 + 2 * i + 1
                block[at] = (block[at] & 15) | ((bits >> (4 * i)) & 15) << 4
    if ty == T.MXFP4:
        blocks[0, 0], blocks[1, 0] = 0, 1
    if ty == T.NVFP4:  # zero, the least, the largest subnormal and the one that is no number
        blocks[0, :4] = 0, 1, 7, 0x7F
    return blocks


def record(ty, blocks, values):
    values = np.ascontiguousarray(values, np.float32).ravel()
    raw = np.ascontiguousarray(blocks).view(np.uint8).tobytes()
    return struct.pack("<III", int(ty), len(raw), values.size) + raw + values.astype("<f4").tobytes()


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    decode, encode = bytearray(), bytearray()
    for ty in [T.F32, T.BF16, *HALVES]:
        rng = np.random.default_rng(1000 + int(ty))
        per_block = GGML_QUANT_SIZES[ty][0]
        if ty in (T.F32, T.BF16):
            x = rng.standard_normal(64).astype(np.float32)
            blocks = (x if ty == T.F32 else (x.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8).reshape(1, -1)
        else:
            blocks = random_blocks(ty, {1: 64, 32: 12, 64: 8, 256: 6}[per_block], rng).reshape(1, -1)
        decode += record(ty, blocks, quants.dequantize(blocks, ty))
    for ty in ENCODED:
        rng = np.random.default_rng(2000 + int(ty))
        x = (rng.standard_normal((1, 12 * 32)) * 10.0 ** rng.uniform(-3, 2, (1, 12 * 32))).astype(np.float32)
        x[0, 64:96] = 0
        if ty in (T.F16, T.BF16):
            x = np.clip(x, -6e4, 6e4)
        encode += record(ty, quants.quantize(x, ty), x)
    (out / "blocks.bin").write_bytes(decode)
    (out / "encoded.bin").write_bytes(encode)
    print(len(decode), "bytes to decode,", len(encode), "bytes to encode")


if __name__ == "__main__":
    main()
