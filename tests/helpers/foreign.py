"""Modules of other projects (Lightning's demos, transformers), as small as possible."""

import contextlib
from dataclasses import dataclass, field

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

WORDS, LENGTH, CLASSES = 23, 6, 3


def generated(*shape, high=WORDS):
    """Return random words, the same ones every time."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(11))


def texts():
    words = generated(8 * 4, LENGTH + 1)
    return DataLoader(TensorDataset(words[:, :-1], words[:, 1:]), 4, shuffle=True)


def continued_texts():
    """Sequences that continue from batch to batch, as drawn by the demo's sampler."""
    words = generated(5 * 4, LENGTH + 1)
    dataset = TensorDataset(words[:, :-1], words[:, 1:])
    return DataLoader(dataset, batch_sampler=SequenceSampler(dataset, batch_size=4))


def encoded(samples):
    words = torch.stack(samples)
    mask = (words > 2).long()
    mask[:, 0] = 1
    return BatchEncoding({"input_ids": words, "attention_mask": mask})


def encodings():
    return DataLoader(list(generated(6 * 4, LENGTH)), 4, shuffle=True, collate_fn=encoded)


def images():
    pixels = torch.randn(6 * 4, 3, 8, 8, generator=torch.Generator().manual_seed(12))
    return DataLoader(TensorDataset(pixels, generated(6 * 4, high=CLASSES)), 4, shuffle=True)


def rows():
    return DataLoader(
        torch.randn(24, 32, generator=torch.Generator().manual_seed(13)), 4, shuffle=True
    )


class Boring(BoringModel):
    pass


class Translating(LightningTransformer):
    def __init__(self):
        super().__init__(vocab_size=WORDS)
        self.model = Transformer(WORDS, ninp=8, nhead=2, nhid=8, nlayers=1)

    def prepare_data(self):
        """Skip the download of the demo's text."""


class Remembering(LightningLSTM):
    def __init__(self):
        super().__init__(vocab_size=WORDS)
        self.model = SimpleLSTM(WORDS, ninp=6, nhid=6, nlayers=2)

    def prepare_data(self):
        """Skip the download of the demo's text."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Pretrained(LightningModule):
    """Wraps a model of transformers as its users do."""

    def __init__(self):
        super().__init__()
        self.model = self.make()
        self.model.train()  # as from_pretrained it comes in eval mode

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Gpt2(Pretrained):
    def make(self):
        config = GPT2Config(
            vocab_size=WORDS,
            n_positions=LENGTH,
            n_embd=8,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
        return GPT2LMHeadModel(config)

    def loss(self, batch):
        return self.model(**batch, labels=batch["input_ids"]).loss


class Bert(Pretrained):
    def make(self):
        sizes = {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 12,
        }
        config = BertConfig(
            vocab_size=WORDS, max_position_embeddings=LENGTH, num_labels=CLASSES, **sizes
        )
        return BertForSequenceClassification(config)

    def loss(self, batch):
        return self.model(**batch, labels=batch["input_ids"].sum(1) % CLASSES).loss


class Vit(Pretrained):
    def make(self):
        sizes = {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 12,
        }
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        return ViTForImageClassification(
            ViTConfig(image_size=8, patch_size=4, num_labels=CLASSES, **sizes, **dropout)
        )

    def loss(self, batch):
        return self.model(pixel_values=batch[0], labels=batch[1]).loss


class ResNet(Pretrained):
    def make(self):
        sizes = {
            "embedding_size": 4,
            "hidden_sizes": [4, 8],
            "depths": [1, 1],
            "layer_type": "basic",
        }
        return ResNetForImageClassification(ResNetConfig(num_labels=CLASSES, **sizes))

    def loss(self, batch):
        return self.model(pixel_values=batch[0], labels=batch[1]).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@dataclass
class Foreign:
    module: type
    loader: object
    trainer: dict = field(default_factory=dict)
    autocast: object = contextlib.nullcontext
    rtol: float = 2e-5


FOREIGN = {
    "boring": Foreign(Boring, rows),
    "transformer": Foreign(Translating, texts),
    "lstm": Foreign(Remembering, continued_texts),
    "gpt2": Foreign(Gpt2, encodings, {"gradient_clip_val": 0.5}),
    "bert": Foreign(Bert, encodings, {"accumulate_grad_batches": 2}),
    "vit": Foreign(Vit, images),
    "resnet": Foreign(ResNet, images),
}


def train(setting, folder, callbacks=(), module_class=None, epochs=2, **trainer_kwargs):
    """Train a module and return (trainer, module)."""
    pl.seed_everything(1, verbose=False)
    module = (module_class or setting.module)()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, ModelCheckpoint(folder / "checkpoints", save_last=True)],
        **{"max_epochs": epochs, **setting.trainer, **trainer_kwargs},
    )
    trainer.fit(module, setting.loader())
    return trainer, module
