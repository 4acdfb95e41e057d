import pytest
from datasets import Dataset, IterableDataset
from trl import GRPOConfig

from tests.trainers.training import PROMPTS, config, letters, make_trainer
from trl_ext import CISPOConfig, CISPOTrainer
from trl_ext.errors import ConfigError, DatasetError, ModelNotFoundError, OutputDirError
from trl_ext.trainers.preflight import check_prompts

CHAT = [{"role": "user", "content": "hi"}]
BAD_DATASETS = {
    r"train_dataset has no column 'prompt' \(it has \['question'\]\)": Dataset.from_dict({"question": ["a"]}),
    r"train_dataset is empty": Dataset.from_dict({"prompt": []}),
    r"'prompt' holds int \(3\): must be a string or a list": Dataset.from_dict({"prompt": [3]}),
    r"'prompt' holds a list of str": Dataset.from_dict({"prompt": [["a", "b"]]}),
    r"'prompt' holds an empty list": Dataset.from_dict({"prompt": [[], CHAT]}),
    r"'prompt' holds a list of dict: must be a string or a list of \{\"role\"": Dataset.from_dict(
        {"prompt": [[{"content": "no role"}]]}
    ),
    r"1 of 3 rows have no prompt": Dataset.from_dict({"prompt": ["a", None, "b"]}),
    r"train_dataset is a list: must be a datasets.Dataset": [{"prompt": "a"}],
    r"train_dataset is a NoneType": None,
}


@pytest.mark.parametrize("message", BAD_DATASETS)
def test_bad_datasets_are_refused_in_one_line_before_a_model_is_loaded(message):
    with pytest.raises(DatasetError, match=message) as error:
        CISPOTrainer("no/such-model", letters, config(CISPOConfig), BAD_DATASETS[message])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_dict({"prompt": ["a"]}),
        Dataset.from_dict({"prompt": [CHAT]}),
        IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])),
        {"one": PROMPTS, "two": PROMPTS},
    ],
)
def test_good_datasets_pass(dataset):
    check_prompts(dataset)


def test_rows_that_a_selection_dropped_do_not_count_as_missing():
    check_prompts(Dataset.from_dict({"prompt": ["a", None]}).select([0]))


def test_the_bad_one_of_several_evaluation_sets_is_named(tiny):
    with pytest.raises(DatasetError, match=r"eval_dataset\['b'\] is empty"):
        make_trainer(
            CISPOTrainer, tiny, config(CISPOConfig), eval_dataset={"a": PROMPTS, "b": Dataset.from_dict({"prompt": []})}
        )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/such-model", "no such folder here, and the Hub does not have it"),
        ("./no/such/folder", "no such folder here"),
        ("/no/such/folder", "no such folder here"),
    ],
)
def test_unknown_models_are_refused_in_one_line(name, reason):
    with pytest.raises(ModelNotFoundError, match=reason) as error:
        CISPOTrainer(name, letters, config(CISPOConfig), PROMPTS)
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"the folder has no config\.json"):
        CISPOTrainer(str(tmp_path), letters, config(CISPOConfig), PROMPTS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"its config\.json cannot be read"):
        CISPOTrainer(str(tmp_path), letters, config(CISPOConfig), PROMPTS)


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    args = config(CISPOConfig)
    args.output_dir = str(tmp_path / "file" / "out")
    with pytest.raises(OutputDirError, match=r"output_dir '.*out' cannot be written: Not a directory"):
        CISPOTrainer("no/such-model", letters, args, PROMPTS)


def test_a_config_of_another_trainer_is_refused(tiny):
    with pytest.raises(ConfigError, match="args is a GRPOConfig: CISPOTrainer takes a CISPOConfig"):
        make_trainer(CISPOTrainer, tiny, config(GRPOConfig))
