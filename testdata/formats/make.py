"""Makes the golden values of the weight formats with the `gguf` Python package.

    pip install gguf==0.19.0 numpy && python make.py

decode.bin    per format: ggml type, number of bytes, number of elements (u32 each), the bytes, their f32 values.
quantize.bin  number of values (u32), f32 values; then per encodable format: ggml type, number of bytes, the bytes.
All little-endian.
"""

import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

# Byte offsets of the f16 fields of a block; everything else may hold any bits.
F16_FIELDS = {
    Type.F32: [],
    Type.F16: [],
    Type.BF16: [],
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}
ENCODABLE = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
HERE = pathlib.Path(__file__).parent


def random_blocks(generator, kind):
    """Blocks of random bits and typical scales; the last four have extreme bits and scales."""
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    if not F16_FIELDS[kind]:
        return plain_elements(generator, kind)
    blocks = generator.integers(0, 256, (12 if block_len == 32 else 6, block_bytes), dtype=np.uint8)
    blocks[-1], blocks[-2] = 0xFF, 0x00
    for offset in F16_FIELDS[kind]:
        scales = generator.normal(0, 0.02, len(blocks)).astype(np.float16)
        scales[-4:] = [65504.0, -65504.0, 6e-8, -1.0]  # largest, most negative, smallest subnormal, one
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks


def plain_elements(generator, kind):
    values = generator.normal(0, 1, 64).astype(np.float32)
    values[:8] = [0.0, -0.0, 1.0, 65504.0, -65504.0, 6e-8, 6e-5, -np.inf]
    return quantize(values, kind).view(np.uint8).reshape(1, -1)


def values_to_quantize(generator):
    """Blocks of several spreads, and the ties and degenerate cases that a rounding rule must decide."""
    blocks = [generator.normal(0, scale, 32) for scale in (1e-6, 1e-3, 0.02, 1.0, 300.0) for _ in range(8)]
    blocks += [generator.normal(shift, 0.1, 32) for shift in (-3.0, 0.5, 8.0)]
    ramp = np.arange(32, dtype=np.float64)
    blocks += [np.zeros(32), np.full(32, 2.5), -np.full(32, 2.5), ramp - 16, 16 - ramp, ramp / 2 - 8, (ramp - 16) * 127 / 32]
    blocks += [np.where(ramp % 2 == 0, 1.0, -1.0), np.where(ramp % 2 == 0, -1.0, 1.0), np.where(ramp == 5, -7.0, 0.0)]
    blocks += [np.where(ramp == 31, 127.0, ramp - 15.5)]  # scale 1 in Q8_0: every element is a tie
    return np.concatenate(blocks).astype(np.float32)


def make_decode(generator):
    with open(HERE / "decode.bin", "wb") as file:
        for kind in F16_FIELDS:
            blocks = random_blocks(generator, kind)
            values = dequantize(blocks.reshape(-1), kind) if kind != Type.F32 else blocks.reshape(-1).view(np.float32)
            file.write(struct.pack("<III", kind, blocks.size, values.size))
            file.write(blocks.tobytes() + values.astype("<f4").tobytes())


def make_quantize(generator):
    values = values_to_quantize(generator)
    with open(HERE / "quantize.bin", "wb") as file:
        file.write(struct.pack("<I", values.size) + values.astype("<f4").tobytes())
        for kind in ENCODABLE:
            encoded = quantize(values, kind).tobytes()
            file.write(struct.pack("<II", kind, len(encoded)) + encoded)


if __name__ == "__main__":
    make_decode(np.random.default_rng(2402))
    make_quantize(np.random.default_rng(11131))
