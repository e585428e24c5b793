"""Block sizes: a frozen config for each kind of kernel, and the heuristic functions that choose it.

The numbers are reasoned, not tuned (docs/kernels.md). Sizes are powers of two, because Triton's are.
"""

from dataclasses import dataclass

from moejax.ops.triton.launch import power_of_two

MULTIPROCESSORS = 132  # of a Hopper
# About four rounds of the programs that run at a time (two on each multiprocessor), so that the last round, which
# leaves some idle, is a small part.
ENOUGH_PROGRAMS = 1024
# A tensor core's smallest tile of 16-bit operands is 16 x 16; Hopper's warp-group product takes 64 rows.
SMALLEST_TILE = 16
WARP_GROUP_ROWS = 64
HOPPER_SHARED_MEMORY = 227 * 1024


@dataclass(frozen=True, kw_only=True)
class RouteBlock:
    """tokens: per program.  experts: E, padded."""

    tokens: int
    experts: int
    warps: int = 4


def route_block(tokens: int, num_experts: int) -> RouteBlock:
    """Tiles [tokens, E] of 2,048 values, 16 for each of 128 threads. Few tokens make one tile, and so one launch."""
    experts = max(2, power_of_two(num_experts))
    return RouteBlock(tokens=min(power_of_two(tokens), max(16, 2048 // experts)), experts=experts)


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Of kernels that move rows. width: values of a row per program."""

    width: int
    warps: int = 4


def row_block(width: int) -> RowBlock:
    """Eight values (16 bytes of bfloat16) for each of 128 threads."""
    return RowBlock(width=min(1024, power_of_two(width)))


@dataclass(frozen=True, kw_only=True)
class ProductBlock:
    """Of kernels that multiply rows by weights on tensor cores, in steps that are copied ahead through shared memory.

    rows, out, contracted: the tile.  matrices: weights read side by side (2 for gate and up).
    stages: steps in shared memory at a time.
    """

    rows: int
    out: int
    contracted: int
    matrices: int
    itemsize: int
    warps: int
    stages: int

    @property
    def shared_memory_bytes(self) -> int:
        """What a program's stages take; Triton adds up to a few hundred bytes."""
        return self.stages * (self.rows + self.matrices * self.out) * self.contracted * self.itemsize


def few_tokens_block(tokens: int, contracted: int, itemsize: int, matrices: int, shared_memory: int) -> ProductBlock:
    """All tokens in one tile, so that a weight is read once whatever the routing; two programs on a multiprocessor.

    The weights are the side of 64 rows. A step reads 256 bytes of each of them.
    """
    rows = max(SMALLEST_TILE, power_of_two(tokens))
    return _with_stages(
        rows=rows,
        out=WARP_GROUP_ROWS if itemsize < 4 else WARP_GROUP_ROWS // 2,
        contracted=min(_step(rows, 256 // itemsize, itemsize), max(SMALLEST_TILE, power_of_two(contracted))),
        matrices=matrices,
        itemsize=itemsize,
        warps=4,
        most_stages=5,
        shared_memory=shared_memory // 2,
    )


def grouped_block(
    rows: int, out: int, contracted: int, itemsize: int, matrices: int, shared_memory: int
) -> ProductBlock:
    """A tile of `rows` x 256 outputs (128 each of gate and up), which 8 warps hold in 128 registers per thread.

    Half of that before Hopper, whose tensor cores read operands from shared memory and not from registers.
    """
    rows = max(SMALLEST_TILE, power_of_two(rows))
    outputs = 256 if shared_memory >= HOPPER_SHARED_MEMORY and itemsize < 4 else 128
    return _with_stages(
        rows=rows,
        out=min(outputs // matrices, max(SMALLEST_TILE, power_of_two(out))),
        contracted=min(_step(rows, 128 // itemsize, itemsize), max(SMALLEST_TILE, power_of_two(contracted))),
        matrices=matrices,
        itemsize=itemsize,
        warps=8 if rows == 128 else 4,
        most_stages=4,
        shared_memory=shared_memory,
    )


def grouped_rows(rows_per_expert: int) -> int:
    """Rows of a block: few enough that padding stays below the rows themselves, 128 when experts fill it."""
    if rows_per_expert <= 16:
        return 16
    return 64 if rows_per_expert < 96 else 128


def down_splits(programs: int, steps: int) -> int:
    """Into how many parts to divide a sum of `steps` steps, so that there are enough programs: a power of two.

    Each part is summed by one program and the parts by `combine`, in order: no atomics, the same bits every time.
    """
    splits = 1
    while programs * splits < ENOUGH_PROGRAMS and splits < 8 and steps >= 8 * splits:
        splits *= 2
    return splits


def project_block(tokens: int, outputs: int, contracted: int, itemsize: int, shared_memory: int) -> ProductBlock:
    """All rows in one tile, and narrow blocks of outputs where there would be less than two for each multiprocessor.

    As many stages as leave room for all programs that a multiprocessor gets, up to four, at a time.
    """
    out = WARP_GROUP_ROWS
    while out > SMALLEST_TILE and outputs // out < ENOUGH_PROGRAMS // 4:
        out //= 2
    rows = max(SMALLEST_TILE, power_of_two(tokens))
    return _with_stages(
        rows=rows,
        out=out if itemsize < 4 else min(out, WARP_GROUP_ROWS // 2),
        contracted=min(_step(rows, 512 // itemsize, itemsize), max(SMALLEST_TILE, power_of_two(contracted))),
        matrices=1,
        itemsize=itemsize,
        warps=4 if out > SMALLEST_TILE else 2,  # of four, ptxas gives 40 registers to a thread and spills
        most_stages=8,
        shared_memory=shared_memory // min(4, max(1, -(-outputs // (out * MULTIPROCESSORS)))),
    )


@dataclass(frozen=True, kw_only=True)
class RotateBlock:
    """Of rotary embeddings. tokens: per program.  half: of a head's width, padded."""

    tokens: int
    half: int
    warps: int = 4


def rotate_block(tokens: int, width: int) -> RotateBlock:
    """Tiles of up to 1,024 pairs, 8 for each of 128 threads; one token is one warp's."""
    half = max(1, power_of_two(width // 2))
    tokens = min(power_of_two(tokens), max(1, 1024 // half))
    return RotateBlock(tokens=tokens, half=half, warps=4 if tokens > 1 else 1)


@dataclass(frozen=True, kw_only=True)
class AttendBlock:
    """Of attention. queries, rows: a program's queries, and those of all heads that share a key/value head, padded.

    keys: of a step, whose keys and values are copied ahead.  width: H, padded.
    """

    queries: int
    rows: int
    keys: int
    width: int
    warps: int
    stages: int
    itemsize: int

    @property
    def shared_memory_bytes(self) -> int:
        """What the queries and the stages take."""
        return (self.rows + 2 * self.stages * self.keys) * self.width * self.itemsize


def attend_block(
    heads: int, queries: int, width: int, positions: int, itemsize: int, shared_memory: int
) -> AttendBlock:
    """Two warp groups with a tile of 128 rows between them; a few rows are one tile, on half the shared memory.

    A step reads 16 KiB of keys and as much of values where a head has 128 numbers of 16 bits, half of that in float32.
    """
    padded, width = power_of_two(heads), max(SMALLEST_TILE, power_of_two(width))
    most = max(padded, 2 * WARP_GROUP_ROWS if shared_memory >= HOPPER_SHARED_MEMORY and itemsize < 4 else 32)
    queries = min(power_of_two(queries), most // padded)
    rows = max(SMALLEST_TILE, padded * queries)
    held = (shared_memory if rows > SMALLEST_TILE else shared_memory // 2) // (width * itemsize) - rows
    keys = max(SMALLEST_TILE, min(WARP_GROUP_ROWS if itemsize < 4 else SMALLEST_TILE, power_of_two(positions)))
    while keys > SMALLEST_TILE and 2 * keys > held:
        keys //= 2
    return AttendBlock(
        queries=queries,
        rows=rows,
        keys=keys,
        width=width,
        warps=8 if rows >= 2 * WARP_GROUP_ROWS else 4,
        stages=max(1, min(4, held // (2 * keys))),
        itemsize=itemsize,
    )


def key_splits(programs: int, blocks: int) -> int:
    """Among how many programs to divide the keys of one sequence and head: two on each multiprocessor, if they last."""
    splits = 1
    while programs * splits < ENOUGH_PROGRAMS // 4 and 2 * splits <= blocks:
        splits *= 2
    return splits


def _step(rows: int, most: int, itemsize: int) -> int:
    """Inputs of a step. Threads hold the operands of a float32 product, which no tensor core computes, in registers."""
    return most if itemsize < 4 else min(most, max(SMALLEST_TILE, 1024 // rows))


def _with_stages(
    *,
    rows: int,
    out: int,
    contracted: int,
    matrices: int,
    itemsize: int,
    warps: int,
    most_stages: int,
    shared_memory: int,
) -> ProductBlock:
    """As many stages as fit, at least two: one to copy into while the other is multiplied."""
    stage = (rows + matrices * out) * contracted * itemsize
    return ProductBlock(
        rows=rows,
        out=out,
        contracted=contracted,
        matrices=matrices,
        itemsize=itemsize,
        warps=warps,
        stages=max(2, min(most_stages, shared_memory // stage)),
    )
