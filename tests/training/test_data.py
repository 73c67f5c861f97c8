import json

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.models import loading as models
from lorascope.models.config import ModelConfig
from lorascope.training import batches, data
from lorascope.training.batches import IGNORE, Encoded, Order
from lorascope.training.config import DataConfig
from lorascope.training.rows import load_rows, read_file


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return models.load_tokenizer(ModelConfig(str(tiny_bert)))


def test_each_epoch_uses_every_text_once_in_an_order_of_its_own():
    order = Order(10, seed=3)
    stream = [order[i] for i in range(20)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]
    assert stream[:10] == batches.permutation(10, 3, 0).tolist()
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


PAD, UNK, CLS, SEP = range(4)  # of the tiny tokenizer, whose own beginning token is [CLS] and whose end token is [SEP]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_packing_joins_texts_between_their_tokens_and_drops_the_rest(tokenizer, bos, eos):
    texts = ["red apple", "river sings the", "stone"]
    config = DataConfig("x", max_length=4, add_bos_token=bos, add_eos_token=eos)
    start, end = [CLS] * (bos is not False), [SEP] * eos
    stream = [i for text in texts for i in [*start, *ids_of(tokenizer, text), *end]]
    packed = data.encode_lm(texts, tokenizer, config)
    assert list(packed.tokens) == [stream[i : i + 4] for i in range(0, len(stream) // 4 * 4, 4)]


def test_too_little_text_to_fill_a_block_is_refused_with_a_way_out(tokenizer):
    words = r"too short to fill a block; found 4 tokens in 1 text; expected 10 or more, .*more texts.*data.packing"
    with pytest.raises(InputError, match=words):
        data.encode_lm(["red apple"], tokenizer, DataConfig("x", max_length=10))


def test_without_packing_a_text_has_its_beginning_and_an_end_only_where_it_ended(tokenizer):
    def tokens(*texts, **options):
        config = DataConfig("x", max_length=4, packing=False, **options)
        return [list(ids) for ids in data.encode_lm(texts, tokenizer, config).tokens]

    red, apple, river, stone = ids_of(tokenizer, "red apple river stone")
    assert tokens("red apple river stone") == [[CLS, red, apple, river]]  # cut: it did not end here
    assert tokens("red apple river") == [[CLS, red, apple, river]]  # no room for its end
    assert tokens("red apple", "stone") == [[CLS, red, apple, SEP], [CLS, stone, SEP]]
    assert tokens("red apple river stone", add_bos_token=False) == [[red, apple, river, stone]]
    assert tokens("red apple river", add_bos_token=False) == [[red, apple, river, SEP]]
    assert tokens("red apple", add_eos_token=False) == [[CLS, red, apple]]


def without_special_tokens(tokenizer):
    """A copy that adds nothing to a text, as SmolLM2's."""
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    plain._tokenizer.post_processor = None
    return plain


def test_the_beginning_is_the_tokenizers_own(tokenizer):
    plain = without_special_tokens(tokenizer)
    assert data.beginning(plain, DataConfig("x")) == []
    with pytest.raises(InputError, match="no beginning token"):
        data.beginning(plain, DataConfig("x", add_bos_token=True))
    plain.bos_token = "stone"
    assert data.beginning(plain, DataConfig("x")) == []
    assert data.beginning(plain, DataConfig("x", add_bos_token=True)) == ids_of(plain, "stone")


@pytest.mark.parametrize(
    ("row", "column", "fine"),
    [
        ({"prompt": "red", "completion": "apple"}, "prompt", False),
        ({"instruction": "red", "input": "", "output": "apple"}, "instruction", False),
        ({"input": "red", "target": "apple"}, "input", False),
        ({"text": "red", "completion": "apple"}, "text", False),
        ({"text": "red", "messages": [{"role": "user", "content": "apple"}]}, "text", False),
        ({"text": "red apple", "messages": [{"role": "user", "content": "apple"}]}, "text", True),
        ({"text": "say red: apple", "instruction": "red", "output": "apple"}, "text", True),
        ({"text": "red", "source": "apple"}, "text", True),  # where the text comes from
        ({"prompt": "red"}, "prompt", True),
        ({"prompt": "red", "id": "apple"}, "prompt", True),
    ],
)
def test_a_part_of_a_conversation_is_no_text_to_train_on(tmp_path, tokenizer, row, column, fine):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 4)
    config = DataConfig(str(path), text_column=column, packing=False)
    if fine:
        assert len(data.load(config, "CAUSAL_LM", tokenizer, 0)[0]) == 4 - 1
        return
    with pytest.raises(InputError, match=r"would be trained on its column .* join prompt and completion"):
        data.load(config, "CAUSAL_LM", tokenizer, 0)


def test_a_conversation_in_the_texts_place_says_what_to_do(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "red"}]}) + "\n")
    for column in ("text", "messages"):
        with pytest.raises(InputError, match=r"no text in the column .* chat templates, are not supported"):
            data.load(DataConfig(str(path), eval_path=str(path), text_column=column), "CAUSAL_LM", tokenizer, 0)


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
    assert read_file(path) == [{"text": "red, apple", "label": "yes"}, {"text": "stone", "label": "no"}]


def test_a_hub_dataset_folder_is_read_through_datasets(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"apple {'red' * i},{i % 2}\n" for i in range(20)))
    train, held_out = data.load(DataConfig(str(tmp_path)), "SEQ_CLS", tokenizer, 0)
    assert (len(train), len(held_out)) == (18, 2)
    assert train.label_names == ("0", "1")


def test_the_held_out_share_is_never_trained_on(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"apple {i}", "label": i % 3}) + "\n" for i in range(40)))
    rows = load_rows(DataConfig(str(path), eval_fraction=0.25), 0)
    train, held_out = ({row["text"] for row in part} for part in rows)
    assert (len(train), len(held_out)) == (30, 10)
    assert not train & held_out


@pytest.mark.parametrize("values", [(10, 2, 1), ("10", "2", "1")])
def test_whole_numbers_sort_as_numbers(values):
    assert data.label_names([{"label": value} for value in values], DataConfig("x")) == ("1", "2", "10")


def test_words_with_numbers_in_them_are_classes():
    rows = [{"label": value} for value in ("v1.5", "2.5", "3", "nan")]
    assert set(data.label_names(rows, DataConfig("x"))) == {"v1.5", "2.5", "3", "nan"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"txt": "a", "label": 1}\n', r"row 1 .* has no text in the column 'text'; found the columns 'txt', 'label'"),
        ('{"text": 3, "label": 1}\n', "has no text in the column"),
        ('{"text": "a"}\n', "has no 'label'"),
        ('{"text": "a", "label": 0.5}\n', "holds fractions"),
        ('{"text": "a", "label": "4.69"}\n', "holds fractions; found '4.69'.*regression is not supported"),
        ('{"text": "a", "label": "4"}\n{"text": "b", "label": "3.5"}\n', "holds fractions; found '3.5'"),
        ('{"text": "a", "label": "1.0"}\n', "holds fractions"),  # a column of floats gives it: as JSON's 1.0
        ('{"text": "a", "label": "4,5"}\n', "holds fractions"),
        ('{"text": "a", "label": ["x", "y"]}\n', "holds lists.*multi-label"),
        ('{"text": "a", "label": [0, 1]}\n', "holds lists"),
        ('{"text": "a", "label": {"x": 1}}\n', "holds lists"),
        ('{"text": "a", "label": 1}\n{"text"', "cannot read"),
        ("[1]\n", "is not an object"),
        ("", "no rows"),
    ],
)
def test_bad_rows_are_named_in_one_sentence(tmp_path, tokenizer, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        data.load(DataConfig(str(path), eval_path=str(path)), "SEQ_CLS", tokenizer, 0)
    assert "\n" not in str(error.value)


def test_texts_without_tokens_are_refused(tokenizer):
    with pytest.raises(InputError, match="no text of x has a token to predict"):
        data.encode_lm(["red"], tokenizer, DataConfig("x", packing=False, add_bos_token=False, add_eos_token=False))
    tokenizer._tokenizer.post_processor = None  # as a decoder's, which adds nothing
    with pytest.raises(InputError, match="a text of x is empty; found row 2"):
        data.encode_classes(
            [{"text": "a", "label": "y"}, {"text": "", "label": "y"}], ("y",), tokenizer, DataConfig("x")
        )


def test_a_label_that_training_never_saw_is_named(tmp_path, tokenizer):
    for name, label in (("train", "yes"), ("test", "maybe")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "apple", "label": label}))
    config = DataConfig(str(tmp_path / "train.jsonl"), eval_path=str(tmp_path / "test.jsonl"))
    with pytest.raises(InputError, match="'maybe' is not in the training data"):
        data.load(config, "SEQ_CLS", tokenizer, 0)


def test_keys_of_other_kinds_of_data_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    with pytest.raises(InputError, match=r"eval_path goes with a data.path that is a file"):
        load_rows(DataConfig("wordnet-classes", eval_path="x.csv"), 0)
    with pytest.raises(InputError, match=r"data.name is of a hub dataset"):
        load_rows(DataConfig(str(tmp_path / "rows.csv"), name="sst2"), 0)


def test_a_missing_file_and_an_unknown_split_are_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv"):
        load_rows(DataConfig(str(tmp_path / "gone.csv")), 0)
    with pytest.raises(InputError, match="no split 'dev'; expected train, validation, test"):
        load_rows(DataConfig("wordnet-classes", eval_split="dev"), 0)
