"""Your own rule with matrices: compiler output, error messages, and a network trained with it.

The rule is 12_own_matrix_rule.opt, next to this file.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import optlang

FILE = Path(__file__).with_suffix(".opt")


def show_stages() -> None:
    """Print the paths of a step, and the stages of each."""
    for line in optlang.emit(FILE, stage="program").splitlines():
        if line.startswith(("if", "stage")) or "store" in line:
            print(line if line.startswith("if") else f"    {line.strip()}")


def show_mistakes(OneSided: type) -> None:
    """Print the errors for a wrong shape in the rule, and for a parameter of a wrong shape."""
    text = FILE.read_text(encoding="utf-8")
    for finding in optlang.check(text.replace("g @ g.T", "g.T @ g")):
        print(finding, end="\n\n")
    try:
        OneSided(nn.Linear(64, 10).named_parameters())
    except ValueError as error:
        print(f"ValueError: {error}")


def train(optimizer_class: type, lr: float, epochs: int = 10) -> float:
    """Return the accuracy on test images of a network without biases."""
    digits = load_digits()
    pixels = digits.data.astype("float32") / 16
    parts = train_test_split(pixels, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    images, test_images, labels, test_labels = map(torch.tensor, parts)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128, bias=False), nn.GELU(), nn.Linear(128, 10, bias=False))
    optimizer = optimizer_class(network.parameters(), lr=lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return (network(test_images).argmax(1) == test_labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small for more threads to help

    print(FILE.read_text(encoding="utf-8"))
    print(f"findings: {len(optlang.check(FILE))}\n")
    show_stages()
    OneSided = optlang.compile(FILE, backend=options.backend)
    print("\nA product in the wrong order, and a parameter that is not a matrix:\n")
    show_mistakes(OneSided)
    print()
    # Learning rates: the best of 0.1, 0.2, 0.5, 1 and 2 for each.
    for name, optimizer_class, lr in (("OneSided", OneSided, 0.5), ("torch.optim.SGD", torch.optim.SGD, 1.0)):
        print(f"test accuracy after 10 epochs of {name}: {train(optimizer_class, lr):.1%}")


if __name__ == "__main__":
    main()
