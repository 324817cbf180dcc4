"""Parameter shapes of real networks, from their architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Shape = tuple[int, ...]


def gpt2() -> list[Shape]:
    """Return the 148 parameters of GPT-2 small (124 M numbers); the output layer is tied to the embedding."""
    width, hidden = 768, 3072
    block: list[Shape] = [
        *((width,), (width,)),  # layer norm
        *((width, 3 * width), (3 * width,)),  # queries, keys and values
        *((width, width), (width,)),  # projection
        *((width,), (width,)),  # layer norm
        *((width, hidden), (hidden,), (hidden, width), (width,)),  # feed-forward
    ]
    return [(50257, width), (1024, width), *(block * 12), (width,), (width,)]


def gpt2_matrices() -> list[Shape]:
    """Return the 48 matrices of GPT-2 small's blocks (85 M numbers), for which Muon and similar optimizers are used."""
    return [shape for shape in gpt2()[2:] if len(shape) == 2]


def matrices() -> list[Shape]:
    """Return 48 matrices of 128 by 128: small, with the same shape."""
    return [(128, 128)] * 48


def resnet50() -> list[Shape]:
    """Return the 161 parameters of ResNet-50 (25.6 M numbers)."""

    def convolution(inputs: int, outputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # weights, then batch norm

    shapes = convolution(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(inputs, width, 1) + convolution(width, width, 3)
            shapes += convolution(width, 4 * width, 1)
            if block == 0:
                shapes += convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def vit_l() -> list[Shape]:
    """Return the 296 parameters of ViT-L/16 (304 M numbers)."""
    width, hidden = 1024, 4096
    block: list[Shape] = [
        *((width,), (width,)),  # layer norm
        *((3 * width, width), (3 * width,)),  # queries, keys and values
        *((width, width), (width,)),  # projection
        *((width,), (width,)),  # layer norm
        *((hidden, width), (hidden,), (width, hidden), (width,)),  # feed-forward
    ]
    patches: list[Shape] = [(1, 1, width), (width, 3, 16, 16), (width,), (1, 197, width)]
    return [*patches, *(block * 24), (width,), (width,), (1000, width), (1000,)]


def many() -> list[Shape]:
    """Return 1000 vectors of 1024: measures the overhead of a step."""
    return [(1024,)] * 1000


def mlp() -> list[Shape]:
    """Return the 6 parameters of a small perceptron (0.1 M numbers)."""
    return [(256, 64), (256,), (256, 256), (256,), (10, 256), (10,)]


def embedding() -> list[Shape]:
    """Return a table of a million rows of 64 numbers, of which a step touches a few."""
    return [(1_000_000, 64)]


SHAPES: Mapping[str, Callable[[], list[Shape]]] = {
    "gpt2": gpt2,
    "gpt2-matrices": gpt2_matrices,
    "matrices": matrices,
    "resnet50": resnet50,
    "vit-l": vit_l,
    "many": many,
    "mlp": mlp,
    "embedding": embedding,
}
#: For lists with sparse gradients, how many rows of each parameter they touch. Few optimizers support them, so ``all``
#: does not include them.
TOUCHED: Mapping[str, int] = {"embedding": 1000}


def chosen(names: str) -> list[str]:
    """Return the names in a comma-separated list, where ``all`` means every list with dense gradients.

    Raises:
        ValueError: If a name is unknown.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["all"]:
        return [name for name in SHAPES if name not in TOUCHED]
    unknown = [name for name in wanted if name not in SHAPES]
    if unknown or not wanted:
        raise ValueError(f"--shapes: {', '.join(unknown) or 'nothing'} is not one of {', '.join(SHAPES)}, all")
    return wanted
