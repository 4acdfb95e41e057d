"""Models that rewards share, loaded once per process and run on its device over batches sorted by length; their texts.

Tokenizers refuse lone surrogates, which are read as "?".
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from trl_ext.errors import ModelNotFoundError

# A text is cut here before it is tokenized: far beyond the 512 tokens that most models take, whatever the script.
MAX_CHARACTERS = 20_000
CHARACTERS_PER_TOKEN = 10  # read for each token that counts where a model takes more: English has 4 to 5

_TOKENS_ON_CPU = 1024  # of a forward, padding included: no faster with more

Result = TypeVar("Result")


def check_batching(batch_size: int, max_length: int | None = None, shortest: int = 8) -> None:
    """Raise ValueError unless the options of a model's batches make sense."""
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: must be at least 1")
    if max_length is not None and max_length < shortest:
        raise ValueError(f"max_length = {max_length}: must be at least {shortest}")


def tokenizable(text: str, characters: int = MAX_CHARACTERS) -> str:
    """The first `characters` characters, with lone surrogates as "?": tokenizers raise a TypeError at these."""
    return text[:characters].encode("utf-8", "replace").decode()


def is_empty(text: str) -> bool:
    """Whether the text has no visible character: only whitespace, control and zero-width characters, if any."""
    return not any(character.isprintable() and not character.isspace() for character in text)


@functools.cache
def load_model(auto_class: str, name: str) -> tuple[Any, Any]:
    """The model (eval mode, no gradients, on this process's device) and the tokenizer of a folder or a Hub name.

    `auto_class` is a class of transformers, e.g. "AutoModelForSequenceClassification". Loaded once per process, however
    many rewards name it.

    Raises:
        ModelNotFoundError: neither a checkpoint folder here nor a model that can be fetched.
    """
    import transformers
    from accelerate import PartialState

    try:
        model = getattr(transformers, auto_class).from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ModelNotFoundError(f"model {name!r} cannot be loaded: {' '.join(str(error).split()):.200}") from None
    model.config.use_cache = False  # nothing is generated
    return in_onednn(model.eval().requires_grad_(False).to(PartialState().device)), tokenizer


class _OneDnnLinear(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return output


def in_onednn(model: Any) -> Any:
    """The model, whose float32 linear layers on the CPU, if any, now run in oneDNN, as others do of themselves.

    torch gives them to MKL, which takes twice the time where it finds an AMD processor. The numbers are the same but
    for the order of the sums.
    """
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512":
        for layer in model.modules():
            if type(layer) is torch.nn.Linear and layer.weight.type() == "torch.FloatTensor":  # float32, on the CPU
                layer.__class__ = _OneDnnLinear
    return model


def run_by_length(
    items: Sequence[Any], size: Callable[[Any], int], run: Callable[[list[Any]], list[Result]], batch_size: int = 32
) -> list[Result]:
    """`run` over batches of items of like size, longest first; the results in the order of the items.

    `size` is in tokens. Memory stays that of one batch. Longest first: a batch that does not fit fails at once and not
    in the end. On the CPU a thread for each core runs small parts of it: one large forward leaves cores idle, and its
    activations do not stay in a core's cache.
    """
    order = sorted(range(len(items)), key=lambda index: -size(items[index]))
    threads = min(_cores(), batch_size)
    most = -(-min(batch_size, len(items)) // threads)
    batches: list[list[int]] = []
    for row in order:
        full = not batches or len(batches[-1]) == most
        if full or (_on_cpu() and (len(batches[-1]) + 1) * size(items[batches[-1][0]]) > _TOKENS_ON_CPU):
            batches.append([])
        batches[-1].append(row)

    @torch.inference_mode()
    def results_of(batch: list[int]) -> list[Result]:
        return run([items[row] for row in batch])

    results: dict[int, Result] = {}
    for batch, found in zip(batches, _map(results_of, batches, threads), strict=True):
        results.update(zip(batch, found, strict=True))
    return [results[row] for row in range(len(items))]


def _on_cpu() -> bool:
    from accelerate import PartialState

    return bool(PartialState().device.type == "cpu")


def _cores() -> int:
    return torch.get_num_threads() if _on_cpu() else 1


def _map(function: Callable[[Any], Result], arguments: Sequence[Any], threads: int) -> Iterator[Result]:
    """As `map`, in so many threads, among which torch's own are divided."""
    if threads == 1 or len(arguments) == 1:
        yield from map(function, arguments)
        return
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(before // threads,)) as pool:
        try:
            yield from pool.map(function, arguments)
        finally:
            torch.set_num_threads(before)  # the number of a thread is its own, but new threads get the one set last
            pool.shutdown(cancel_futures=True)


def token_limit(model: Any, tokenizer: Any, unknown: int = 512) -> int:
    """The most tokens that the model takes, special ones included; at most `unknown` where its config does not say."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    limits = [tokenizer.model_max_length, positions if positions > 0 else unknown]
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if table is not None and padding is not None:  # RoBERTa's kind: the first positions are for padding
        limits.append(table.num_embeddings - padding - 1)
    return int(min(limits))


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of different lengths as `input_ids` and `attention_mask`, both (B, T).

    Masked tokens are 0, so that tokenizers without a padding token (GPT-2's) do too.
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
