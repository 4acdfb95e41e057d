import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.trainers.training import CPU, load
from trl_ext.errors import DatasetError
from trl_ext.trainers.demonstrations import as_prompts, check_demonstrations, collate, endless, shuffled, tokenize

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
PLAIN = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "10-7=", "completion": " three"}]
CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
    for row in PLAIN
]


@pytest.fixture
def tokenizer(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("rows", [PLAIN, CHAT], ids=["plain", "chat"])
def test_ids_are_those_of_trls_sft_trainer(tiny, tokenizer, rows, tmp_path):
    args = SFTConfig(str(tmp_path), max_length=64, **CPU)
    trainer = SFTTrainer(load(tiny), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        ours = tokenize(row, tokenizer, 64)
        assert ours["prompt_ids"] + ours["completion_ids"] == theirs["input_ids"]
        assert [-100] * len(ours["prompt_ids"]) + ours["completion_ids"] == theirs["labels"]


def test_messages_are_prompt_and_completion(tokenizer):
    dataset = as_prompts(Dataset.from_list([{"messages": row["prompt"] + row["completion"]} for row in CHAT]))
    assert [dict(row) for row in dataset] == CHAT


def test_a_demonstration_is_cut_and_one_that_has_no_room_is_refused(tokenizer):
    whole = tokenize(PLAIN[1], tokenizer, 64)
    cut = tokenize(PLAIN[1], tokenizer, len(whole["prompt_ids"]) + 2)
    assert cut == {"prompt_ids": whole["prompt_ids"], "completion_ids": whole["completion_ids"][:2]}
    with pytest.raises(DatasetError, match=r"a prompt of 5 tokens leaves no room .* raise sft_max_length \(5\)"):
        tokenize(PLAIN[1], tokenizer, 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}], "train_dataset has no column 'completion'"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}], "row 1 has no completion"),
        ([{"prompt": "a", "completion": None}], "row 0 has no completion"),
        ([{"prompt": "1-1=", "completion": 0}], "the completion of row 0 is 0: must be a string, as its prompt is"),
        ([{"prompt": "a", "completion": CHAT[0]["completion"]}], "of row 0 is .*: must be a string, as its prompt is"),
        ([{"prompt": CHAT[0]["prompt"], "completion": 3}], "of row 0 is 3: must be a string or messages"),
    ],
)
def test_what_has_no_demonstrations_is_refused(rows, message):
    with pytest.raises(DatasetError, match=message):
        check_demonstrations(Dataset.from_list(rows), "train_dataset")


def test_prompts_are_padded_on_the_left_and_completions_on_the_right():
    rows = [{"prompt_ids": [5], "completion_ids": [6, 7]}, {"prompt_ids": [8, 9], "completion_ids": []}]
    batch = collate(rows, 0, torch.device("cpu"))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "prompt_ids": [[0, 5], [8, 9]],
        "prompt_mask": [[0, 1], [1, 1]],
        "completion_ids": [[6, 7], [0, 0]],
        "completion_mask": [[1, 1], [0, 0]],
    }


def test_batches_go_on_after_the_skipped_ones_and_leave_the_random_state_alone():
    def make():
        generator = torch.Generator().manual_seed(1)
        return torch.utils.data.DataLoader(list(range(10)), batch_size=3, shuffle=True, generator=generator)

    state = torch.get_rng_state()
    whole, skipped = endless(make()), endless(make(), skip=6)
    expected = [next(whole).tolist() for _ in range(12)]
    assert [next(skipped).tolist() for _ in range(6)] == expected[6:]
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_come_in_another_order_each_time():
    rows = shuffled("abcd", seed=0)
    passes = ["".join(next(rows) for _ in range(4)) for _ in range(6)]
    assert {"".join(sorted(p)) for p in passes} == {"abcd"}
    assert len(set(passes)) > 1
