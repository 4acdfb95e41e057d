"""A tiny Llama over characters, made and fitted here in half a minute, for runs and tests without a model hub."""

from pathlib import Path

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, after `<pad>`, `<eos>` and `<unk>`: 98 tokens."""
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def tiny_model(hidden_size: int = 64, num_hidden_layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """An untrained Llama over `tiny_tokenizer`'s vocabulary: 138 thousand parameters at the default size, float32."""
    set_seed(seed)
    vocabulary = tiny_tokenizer().get_vocab()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            pad_token_id=vocabulary["<pad>"],
            eos_token_id=vocabulary["<eos>"],
            bos_token_id=None,
            tie_word_embeddings=True,
        )
    )


def fit_tiny_model(folder: str | Path, demonstrations: Dataset, steps: int = 900, seed: int = 0) -> None:
    """Fit `tiny_model` to demonstrations with TRL's `SFTTrainer`, and save it and its tokenizer into `folder`.

    About 35 s for the default 900 steps of 128 on 2 CPU cores. Shows a progress bar.
    """
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=tiny_model(seed=seed),
        processing_class=tiny_tokenizer(),
        train_dataset=demonstrations,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=128,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            adam_beta2=0.98,
            seed=seed,
            bf16=False,
            dataloader_pin_memory=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
        ),
    )
    trainer.train()
    trainer.save_model()
