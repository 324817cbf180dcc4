"""Schedule-free AdamW on scikit-learn's digits: training weights, evaluation weights and a checkpoint.

The learning rate is constant, so no schedule has to know when training ends. `optimizer.eval()` switches the parameters
to the average of the iterates, and `optimizer.train()` switches back.
"""

import argparse
import io

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import optlang


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images, test images, training labels, test labels."""
    digits = load_digits()
    parts = train_test_split(digits.data / 16.0, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    images, test_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    labels, test_labels = (torch.tensor(part) for part in parts[2:])
    return images, test_images, labels, test_labels


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))


@torch.no_grad()
def measure(network: nn.Module, data: tuple[Tensor, ...]) -> str:
    """Return loss and accuracy on the test images."""
    _, images, _, labels = data
    guesses = network(images)
    loss = nn.functional.cross_entropy(guesses, labels).item()
    return f"loss {loss:.3f}, accuracy {(guesses.argmax(1) == labels).float().mean().item():.1%}"


def train(network: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, ...], epochs: range) -> None:
    """Train for some epochs; print the results of the training and the evaluation weights."""
    images, _, labels, _ = data
    for epoch in epochs:
        optimizer.train()
        for batch in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
        trained = measure(network, data)
        optimizer.eval()
        if epoch + 1 in (1, 2, 4, 8, 12, 16, 20):
            print(f"epoch {epoch + 1:2}  training weights: {trained}   evaluation weights: {measure(network, data)}")


def through_a_file(*parts: dict) -> list[dict]:
    """Return state dicts after saving them and loading them with `weights_only`."""
    file = io.BytesIO()
    torch.save(parts, file)
    file.seek(0)
    return list(torch.load(file, weights_only=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small for more threads to help
    ScheduleFreeAdamW = optlang.compile(optlang.rules.path("schedulefreeadamw"), backend=options.backend)
    data = load_data()

    network = make_network()
    optimizer = ScheduleFreeAdamW(network.parameters(), lr=2e-2)
    train(network, optimizer, data, range(12))
    saved = through_a_file(network.state_dict(), optimizer.state_dict())
    train(network, optimizer, data, range(12, 20))

    print("\nThe checkpoint after epoch 12 contains the evaluation weights. Resumed from it:")
    resumed = make_network()
    resumed.load_state_dict(saved[0])
    other = ScheduleFreeAdamW(resumed.parameters(), lr=2e-2)
    other.load_state_dict(saved[1])
    print(f"epoch 12  {measure(resumed, data)}")
    train(resumed, other, data, range(12, 20))
    pairs = zip(network.parameters(), resumed.parameters(), strict=True)
    print(f"largest difference between the two networks: {max((a - b).abs().max().item() for a, b in pairs):.1e}")

    print("\nA step in evaluation mode is refused:")
    try:
        optimizer.step()
    except RuntimeError as error:
        print(f"  RuntimeError: {error}")


if __name__ == "__main__":
    main()
