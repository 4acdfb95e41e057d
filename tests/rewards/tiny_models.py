"""Untrained or barely trained checkpoints, saved in a folder as a test needs them."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from trl_ext.builtin.tiny_model import tiny_tokenizer

WORDS = "the a cat dog sat ran on mat big red sun moon is was no not good bad fine awful about This text sports music ."
WORDS = WORDS.split()
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def word_tokenizer(special=True, padding_side="left"):
    """Words of `WORDS`; `special`: [CLS] and [SEP] around a text, or a pair."""
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {token: index for index, token in enumerate([*names.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side=padding_side, **names)


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_encoder(folder):
    """A BERT without a head, 24 tokens at most."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(padding_side="right")  # sentence-transformers pads on the tokenizer's side
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=24, **SIZES)
    return save(folder, BertModel(config), tokenizer)


def save_checkpoint(folder, labels, problem_type=None, examples=(), special=True):
    """A BERT with these labels, fitted to (texts, label) examples, 64 tokens at most."""
    torch.manual_seed(0)
    encode = word_tokenizer(special)
    config = BertConfig(
        vocab_size=len(encode),
        num_hidden_layers=1,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem_type,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        **SIZES,
    )
    model = BertForSequenceClassification(config)
    if examples:
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        columns = [list(column) for column in zip(*(texts for texts, _ in examples), strict=True)]
        inputs = encode(*columns, padding=True, padding_side="right", return_tensors="pt")
        wanted = torch.tensor([labels.index(label) for _, label in examples])
        for _ in range(150):
            logits = model(**inputs).logits
            torch.nn.functional.cross_entropy(logits, wanted).backward()
            optimizer.step()
            optimizer.zero_grad()
    return save(folder, model, encode)


def save_decoder(folder, labels=1, template=None, pad=True, scale=1.0):
    """A Llama over characters with a classification head, whose outputs are `scale` times as far apart; 64 tokens."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id if pad else None,
        bos_token_id=None,
        eos_token_id=1,
        num_labels=labels,
        **SIZES,
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight *= scale
    if not pad:
        tokenizer.pad_token = None
    tokenizer.chat_template = template
    return save(folder, model, tokenizer)
