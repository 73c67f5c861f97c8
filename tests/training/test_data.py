import json

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.training import data, models
from lorascope.training.config import DataConfig, ModelConfig
from lorascope.training.data import IGNORE, Encoded, Order


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return models.load_tokenizer(ModelConfig(str(tiny_bert)))


def test_each_epoch_uses_every_text_once_in_an_order_of_its_own():
    order = Order(10, seed=3)
    stream = [order[i] for i in range(20)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]
    assert stream[:10] == data.permutation(10, 3, 0).tolist()
    assert stream != [Order(10, seed=4)[i] for i in range(20)]


def test_the_order_is_a_function_of_the_step():
    order = Order(10, seed=0)
    steps = [order.micro_batches(step, 3, 2) for step in range(5)]
    fresh = Order(10, seed=0)
    assert fresh.micro_batches(4, 3, 2) == steps[4]  # without having been at steps 0 to 3
    assert [i for step in steps for batch in step for i in batch] == [order[i] for i in range(30)]


def test_grouping_by_length_keeps_every_text_and_pads_less():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    plain, grouped = Order(1003, 0), Order(1003, 0, lengths, size=8)
    assert sorted(grouped[i] for i in range(1003)) == list(range(1003))

    def padded(order):
        return sum(8 * max(lengths[i] for i in order.micro_batches(step, 8, 1)[0]) for step in range(125))

    assert padded(grouped) < 0.65 * padded(plain)  # uniform lengths: 8 at random pad to 89 % of the longest
    means = [np.mean(lengths[grouped.micro_batches(step, 8, 1)[0]]) for step in range(125)]
    assert abs(np.corrcoef(means, range(125))[0, 1]) < 0.3  # and passes are not sorted; 0.3 is over three sigma


def test_a_batch_is_padded_to_its_longest_text():
    encoded = Encoded([[5, 6, 7], [8], [9, 9, 9, 9]], [1, 0, 2], pad=0)
    batch = encoded.batch([0, 1])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [1, 0]
    assert encoded.targets([0, 1]) == 2
    assert encoded.by_length(2) == [[2, 0], [1]]


def test_a_language_model_is_scored_on_every_token_after_the_first():
    encoded = Encoded([[5, 6, 7], [8, 9]], None, pad=0)
    assert encoded.batch([0, 1]).labels.tolist() == [[5, 6, 7], [8, 9, IGNORE]]
    assert encoded.targets([0, 1]) == 3


def test_packing_joins_texts_by_the_end_token_and_drops_the_rest(tokenizer):
    texts = ["red apple", "river sings the", "stone"]
    packed = data.encode_lm(texts, tokenizer, DataConfig("x", max_length=4))
    ids = [i for text in texts for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], 3]]  # 3 is [SEP]
    assert list(packed.tokens) == [ids[:4], ids[4:8]]
    assert len(ids) == 9
    with pytest.raises(InputError, match="too short to fill a block"):
        data.encode_lm(texts, tokenizer, DataConfig("x", max_length=10))


def test_without_packing_each_text_is_cut_and_ended(tokenizer):
    plain = data.encode_lm(["red apple river sings", "stone"], tokenizer, DataConfig("x", max_length=3, packing=False))
    assert [len(ids) for ids in plain.tokens] == [3, 2]
    assert all(ids[-1] == 3 for ids in plain.tokens)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'text,label\n"red, apple",yes\nstone,no\n'),
        ("rows.tsv", "text\tlabel\nred, apple\tyes\nstone\tno\n"),
        ("rows.json", json.dumps([{"text": "red, apple", "label": "yes"}, {"text": "stone", "label": "no"}])),
        ("rows.jsonl", '{"text": "red, apple", "label": "yes"}\n\n{"text": "stone", "label": "no"}\n'),
    ],
)
def test_files_of_each_kind_give_the_same_rows(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert data.read_file(path) == [{"text": "red, apple", "label": "yes"}, {"text": "stone", "label": "no"}]


def test_a_hub_dataset_folder_is_read_through_datasets(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"apple {'red' * i},{i % 2}\n" for i in range(20)))
    train, held_out = data.load(DataConfig(str(tmp_path)), "SEQ_CLS", tokenizer, 0)
    assert (len(train), len(held_out)) == (18, 2)
    assert train.label_names == ("0", "1")


def test_the_held_out_share_is_never_trained_on(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"apple {i}", "label": i % 3}) + "\n" for i in range(40)))
    rows = data._rows(DataConfig(str(path), eval_fraction=0.25), 0)
    train, held_out = ({row["text"] for row in part} for part in rows)
    assert (len(train), len(held_out)) == (30, 10)
    assert not train & held_out


def test_whole_numbers_sort_as_numbers():
    rows = [{"label": i} for i in (10, 2, 1)]
    assert data.label_names(rows, DataConfig("x")) == ("1", "2", "10")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"txt": "a", "label": 1}\n', r"row 1 .* has no text in the column 'text'; found the columns 'txt', 'label'"),
        ('{"text": 3, "label": 1}\n', "has no text in the column"),
        ('{"text": "a"}\n', "has no 'label'"),
        ('{"text": "a", "label": 0.5}\n', "holds fractions"),
        ('{"text": "a", "label": 1}\n{"text"', "cannot read"),
        ("[1]\n", "is no object"),
        ("", "no rows"),
    ],
)
def test_bad_rows_are_named_in_one_sentence(tmp_path, tokenizer, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        data.load(DataConfig(str(path), eval_path=str(path)), "SEQ_CLS", tokenizer, 0)
    assert "\n" not in str(error.value)


def test_a_label_that_training_never_saw_is_named(tmp_path, tokenizer):
    for name, label in (("train", "yes"), ("test", "maybe")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "apple", "label": label}))
    config = DataConfig(str(tmp_path / "train.jsonl"), eval_path=str(tmp_path / "test.jsonl"))
    with pytest.raises(InputError, match="'maybe' is not in the training data"):
        data.load(config, "SEQ_CLS", tokenizer, 0)


def test_a_missing_file_and_an_unknown_split_are_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv"):
        data._rows(DataConfig(str(tmp_path / "gone.csv")), 0)
    with pytest.raises(InputError, match="no split 'dev'; expected train, validation, test"):
        data._rows(DataConfig("wordnet-classes", eval_split="dev"), 0)
