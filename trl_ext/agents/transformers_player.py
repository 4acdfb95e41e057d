"""A model of transformers as a player: all episodes of a call in batches, the conversation in tokens as in training."""

from collections.abc import Sequence
from typing import Any

from trl_ext.agents.players import Episode, Player
from trl_ext.agents.stepping import settle
from trl_ext.errors import ConfigError, ModelNotFoundError


class TransformersPlayer(Player):
    """Plays with a causal language model and its tokenizer.

    The conversation is rendered as in `environment_rollout`: by the chat template if there is one, and what the model
    wrote is kept as it was sampled.

    Args:
        model: a folder or a model's name.
        temperature: 0 takes the likeliest token.
        max_new_tokens: of one reply.
        batch_size: episodes that are generated for at once.
        chat: use the chat template; default: if the tokenizer has one.

    Raises:
        ModelNotFoundError: it cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        batch_size: int = 32,
        chat: bool | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"temperature = {temperature}: must be at least 0 and finite")
        for name, number in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if number < 1:
                raise ConfigError(f"{name} = {number}: must be at least 1")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

        from trl_ext.agents.rendering import Renderer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"model {model!r} cannot be loaded: {' '.join(str(error).split())[:200]}"
            ) from None
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.temperature, self.max_new_tokens, self.batch_size = temperature, max_new_tokens, batch_size
        stop = self.model.generation_config.eos_token_id
        stop = {*(stop if isinstance(stop, list) else [stop]), self.tokenizer.eos_token_id} - {None}
        chat = bool(self.tokenizer.chat_template) if chat is None else chat
        self._renderer = Renderer(self.tokenizer, chat, sorted(stop))
        self._context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 10**9
        set_seed(seed)

    def act(self, episodes: Sequence[Episode]) -> list[str | None]:
        for episode in episodes:
            settle(episode, episode, self._read)
        room = [self._context - len(_ids(episode)) if episode.playing else 0 for episode in episodes]
        replies: list[str | None] = [None] * len(episodes)
        whole = [place for place, left in enumerate(room) if left >= self.max_new_tokens]
        batches = [whole[start : start + self.batch_size] for start in range(0, len(whole), self.batch_size)]
        batches += [[place] for place, left in enumerate(room) if 0 < left < self.max_new_tokens]
        for batch in batches:
            limit = min(self.max_new_tokens, *(room[place] for place in batch))
            sampled = self._generate([_ids(episodes[place]) for place in batch], limit)
            for place, ids in zip(batch, sampled, strict=True):
                _extend(episodes[place], ids, 1)
                replies[place] = self.tokenizer.decode(ids, skip_special_tokens=True)
        return replies

    def _read(self, episode: Episode) -> None:
        """Put what the environment said last into the tokens."""
        trajectory = episode.trajectory
        if not trajectory.prompt_ids:
            trajectory.prompt_ids = self._renderer.opening("", episode.messages)[1]
            return
        said = max(place for place, message in enumerate(episode.messages) if message["role"] == "assistant")
        ended = trajectory.completion_ids[-1] in self._renderer.stop_tokens
        _extend(episode, self._renderer.between(episode.messages[said + 1 :], ended), 0)

    def _generate(self, prefixes: list[list[int]], limit: int) -> list[list[int]]:
        """At most `limit` tokens after each prefix, up to and with the first stop token."""
        import torch

        batch = self.tokenizer.pad({"input_ids": prefixes}, return_tensors="pt").to(self.model.device)
        options: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            options = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            ids = self.model.generate(
                **batch,
                max_new_tokens=limit,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=sorted(self._renderer.stop_tokens),
                **options,
            )
        return [self._cut(row) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self._renderer.stop_tokens), len(ids))
        return ids[: end + 1]


def _ids(episode: Episode) -> list[int]:
    return episode.trajectory.prompt_ids + episode.trajectory.completion_ids


def _extend(episode: Episode, ids: list[int], mask: int) -> None:
    episode.trajectory.completion_ids += ids
    episode.trajectory.mask += [mask] * len(ids)
