"""Train a tiny language model with the Hugging Face Trainer: a library rule next to torch.optim.AdamW.

The text is synthetic: each word is followed by one of two others, so a model that has learned the pairs has a loss of
log 2. Nothing is downloaded.
"""

import argparse
import math
import os
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import optlang

try:
    from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments
except ImportError:
    raise SystemExit("this example needs transformers: pip install transformers accelerate") from None

WORDS, LENGTH = 32, 24


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Return sentences in which word w is followed by 3w+1 or 5w+2, modulo the number of words."""
    generator = torch.Generator().manual_seed(0)
    word = torch.randint(WORDS, (count,), generator=generator)
    columns = [word]
    for _ in range(LENGTH - 1):
        coin = torch.randint(2, (count,), generator=generator).bool()
        word = torch.where(coin, 3 * word + 1, 5 * word + 2) % WORDS
        columns.append(word)
    return [{"input_ids": line, "labels": line} for line in torch.stack(columns, dim=1)]


def train(optimizer_class: type[torch.optim.Optimizer], folder: str, steps: int) -> tuple[Any, float]:
    """Train a new model; return it and its final loss."""
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "vocab_size": WORDS}
    # Word 0 is an ordinary word, not padding.
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, resid_pdrop=0.0))
    model.loss_type = "ForCausalLM"  # the default of transformers, set to avoid a warning
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    # The class and its hyperparameters. The Trainer passes parameters, in two groups, and the learning rate.
    given = (optimizer_class, {"lr": arguments.learning_rate, "betas": (0.9, 0.95)})
    text = sentences(512)
    trainer = Trainer(model=model, args=arguments, train_dataset=text, optimizer_cls_and_kwargs=given)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    ids = torch.stack([line["input_ids"] for line in text])
    with torch.no_grad():
        return model, model(input_ids=ids, labels=ids).loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (compiled), inductor or eager")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()

    AdamW = optlang.compile(optlang.rules.path("adamw"), backend=options.backend)
    models = []
    for name, optimizer_class in (("optlang", AdamW), ("torch.optim", torch.optim.AdamW)):
        with tempfile.TemporaryDirectory() as folder:
            model, loss = train(optimizer_class, folder, options.steps)
        models.append(model)
        print(f"{name:11}  loss after {options.steps} steps: {loss:.4f}")
    print(f"guessing: {math.log(WORDS):.4f}; knowing all pairs: {math.log(2):.4f}")
    pairs = zip(*(model.parameters() for model in models), strict=True)
    print(f"largest difference between the two models: {max((a - b).abs().max().item() for a, b in pairs):.1e}")


if __name__ == "__main__":
    main()
