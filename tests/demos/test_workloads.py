"""The stand-ins for AlgoPerf's workloads: their networks, their data, the demo in miniature."""

import ast
import csv
import itertools
import math
import textwrap
from argparse import Namespace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from demos import stand_in_data as data
from demos import stand_ins, workloads
from demos.data import digit_images
from demos.experiment import Options
from demos.stand_ins import BEGIN, END, PAD

SOURCE = textwrap.dedent(
    '''
    class A:
        def getItem_2(self, key):
            """Return it.

            More about it.
            """
            def inner(x): return x + 1
            return inner(self.items[key])

        async def __init__(self):
            pass

        def told(self): "All there is."
    '''
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def functions():
    return {function.name: function for function in data.functions_of(SOURCE)}


# ----------------------------------------------------------------------------------------- networks


def test_the_interaction_of_a_dlrm_is_the_dot_products_of_all_pairs():
    vectors = torch.randn(3, 5, 4)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    expected = torch.tensor(
        [[sum(float(v[i, k] * v[j, k]) for k in range(4)) for i, j in pairs] for v in vectors]
    )
    assert torch.allclose(stand_ins.DLRM.interaction(vectors), expected, atol=1e-5)


def test_a_dlrm_reads_a_row_of_each_table_and_gives_a_logit():
    network = stand_ins.DLRM([5, 9], 3, width=4, hidden=8)
    categories, dense = torch.tensor([[4, 8], [0, 0]]), torch.randn(2, 3)
    first = network.bottom(dense)
    a, b = network.tables[0].weight[[4, 0]], network.tables[1].weight[[8, 0]]
    dots = torch.stack([(a * first).sum(1), (b * first).sum(1), (b * a).sum(1)], 1)
    assert torch.allclose(
        network(categories, dense), network.top(torch.cat([first, dots], 1))[:, 0]
    )
    clicks = torch.tensor([1.0, 0.0])
    p = network(categories, dense).sigmoid()
    expected = -(p[0].log() + (1 - p[1]).log()) / 2
    assert torch.allclose(network.loss((categories, dense, clicks)), expected)


def test_a_unet_keeps_the_shape_and_judges_every_image_alone():
    network = stand_ins.UNet(channels=4, halvings=2)
    images = torch.randn(3, 1, 8, 12)
    assert network(images).shape == images.shape
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5)
    assert network.loss((images, network(images) + 0.5)).item() == pytest.approx(0.5)


def test_skip_connections_of_a_unet_carry_what_the_bottom_does_not():
    network = stand_ins.UNet(channels=4, halvings=2)
    with torch.no_grad():
        for widen in network.widen:
            widen.weight.zero_()  # nothing comes from below
    image = torch.randn(1, 1, 8, 8)
    assert network(image).std() > 1e-3
    shapes = []
    for block in network.up:
        block.register_forward_hook(
            lambda _, given, out: shapes.append((given[0].shape[1:], out.shape[1:]))
        )
    network(image)
    assert shapes == [((16, 4, 4), (8, 4, 4)), ((8, 8, 8), (4, 8, 8))]


def graph():
    kinds = torch.tensor([[1, 2, 2, 3, 0], [3, 1, 0, 0, 0]])
    edges = torch.zeros(2, 5, 5, dtype=torch.bool)
    edges[0, [0, 0, 2], [1, 2, 3]] = True
    edges[1, 0, 1] = True
    return kinds, edges


def test_a_graph_network_does_not_depend_on_the_order_of_nodes_or_on_room_for_more():
    network = stand_ins.GraphNetwork(4, 3, width=8, rounds=3)
    kinds, edges = graph()
    expected = network(kinds, edges)
    assert expected.shape == (2, 3)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        assert torch.allclose(
            network(kinds[:, order], edges[:, order][:, :, order]), expected, atol=1e-5
        )
    assert torch.allclose(network(kinds[1:, :2], edges[1:, :2, :2]), expected[1:], atol=1e-5)


def test_a_graph_network_sees_edges_and_their_direction():
    network = stand_ins.GraphNetwork(4, 3, width=8, rounds=1)
    kinds, edges = graph()
    for other in (torch.zeros_like(edges), edges.mT):
        assert not torch.allclose(network(kinds, other), network(kinds, edges), atol=1e-3)


def test_messages_are_sums_over_edges():
    messages = stand_ins.Round(4)
    nodes, whole = torch.randn(1, 5, 4), torch.randn(1, 4)
    _, edges = graph()
    there = torch.tensor([1.0, 1, 1, 1, 0])[None, :, None]
    got, of_graph = messages(nodes, edges[:1].float(), whole, there)
    expected = torch.zeros(5, 4)
    for node in range(4):
        came, went = torch.zeros(4), torch.zeros(4)
        for a, b in ((0, 1), (0, 2), (2, 3)):
            came += messages.sent(nodes[0, a]) if b == node else 0
            went += messages.received(nodes[0, b]) if a == node else 0
        expected[node] = nodes[0, node] + messages.nodes(
            torch.cat([nodes[0, node], came, went, whole[0]])
        )
    assert torch.allclose(got[0], expected, atol=1e-5)
    pooled = messages.whole(torch.cat([expected[:4].mean(0), whole[0]]))
    assert torch.allclose(of_graph[0], whole[0] + pooled, atol=1e-5)


def test_a_decoder_sees_no_later_tokens_and_no_padding_of_the_source():
    network = stand_ins.EncoderDecoder(20, width=8, depth=2, heads=2)
    source = torch.randint(3, 20, (2, 6))
    source[:, 4:] = PAD
    target = torch.cat([torch.full((2, 1), BEGIN), torch.randint(3, 20, (2, 6))], 1)
    logits = network(source, target)
    assert logits.shape == (2, 7, 20)
    changed = target.clone()
    changed[:, 4] = (changed[:, 4] - 2) % 17 + 3
    assert torch.allclose(network(source, changed)[:, :4], logits[:, :4], atol=1e-5)
    assert not torch.allclose(network(source, changed)[:, 4], logits[:, 4], atol=1e-3)
    assert torch.allclose(network(source[:, :4], target), logits, atol=1e-5)
    other = source.clone()
    other[:, 3] = (other[:, 3] - 2) % 17 + 3
    assert not torch.allclose(
        network(other, target)[:, 0], logits[:, 0], atol=1e-3
    )  # the whole source is seen from the start


def test_only_words_of_the_target_count():
    network = stand_ins.EncoderDecoder(20, width=8, depth=1, heads=2)
    source, target = (
        torch.randint(3, 20, (2, 5)),
        torch.tensor([[BEGIN, 5, 6, END], [BEGIN, 7, END, PAD]]),
    )
    logits = network(source, target[:, :-1]).log_softmax(-1)
    told = [logits[0, 0, 5], logits[0, 1, 6], logits[0, 2, END], logits[1, 0, 7], logits[1, 1, END]]
    assert torch.allclose(network.loss((source, target)), -torch.stack(told).mean())


def test_blocks_do_not_start_alike():
    network = stand_ins.EncoderDecoder(20, width=8, depth=2, heads=2)
    for part in (network.encoder, network.decoder):
        assert not torch.equal(part.layers[0].linear1.weight, part.layers[1].linear1.weight)


def test_losses_of_labels_and_classes():
    kinds, edges = graph()
    network = stand_ins.GraphNetwork(4, 3, width=8)
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    assert torch.equal(
        network.loss((kinds, edges, labels)),
        binary_cross_entropy_with_logits(network(kinds, edges), labels),
    )
    mlp = stand_ins.Classifier(4, 3, width=8)
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    assert torch.equal(mlp.loss((x, y)), cross_entropy(mlp(x), y))


# --------------------------------------------------------------------------------------------- data


def test_clicks_are_what_can_be_known_before_a_word():
    text = ["a", "b", ".", "a", "cc", "a", ",", "b"]
    categories, dense, marks = data.clicks(text, vocabulary=10, before=2).tensors
    assert marks.tolist() == [1, 0, 0, 0, 1, 0]
    numbers = {word: int(number) for (number, _), word in zip(categories, text[1:], strict=False)}
    assert categories.tolist() == [
        [numbers[text[place - 1]], numbers.get(text[place - 2], 0)] for place in range(2, 8)
    ]
    for row, place in enumerate(range(2, 8)):
        past, last = text[:place], text[place - 1]
        since_mark = next(
            (back for back, word in enumerate(reversed(past)) if not word[0].isalpha()),
            len(past) - 1,
        )
        earlier = [place - 1 - where for where, word in enumerate(past[:-1]) if word == last]
        expected = [since_mark, len(last), min(earlier, default=0), len(earlier)]
        assert dense[row].tolist() == pytest.approx([math.log1p(value) for value in expected])


def test_undersampled_images_keep_a_quarter_of_the_columns():
    images = digit_images().tensors[0][:20]
    left = data.undersampled(images)
    assert left.shape == images.shape
    assert torch.allclose(data.undersampled(images, share=1.0), images, atol=1e-5)
    assert torch.equal(data.undersampled(images), left)
    flat = data.undersampled(
        images, share=1 / 8
    )  # the constant column of the transform alone: no change along a row
    assert torch.allclose(flat, images.mean(-1, keepdim=True).expand_as(images), atol=1e-5)
    for image, seen in zip(images[:, 0].double(), left[:, 0].double(), strict=True):
        possible = []
        for column in range(1, 8):
            kept = torch.zeros(8).double()
            kept[[0, column]] = 1
            possible.append(torch.fft.ifft2(torch.fft.fft2(image) * kept).abs())
        assert any(torch.allclose(seen, one, atol=1e-5) for one in possible)


def test_functions_come_without_their_docstrings_and_within_others(functions):
    assert list(functions) == ["getItem_2", "__init__", "told", "inner"]
    assert functions["getItem_2"].summary == "Return it."
    assert "More about it" not in functions["getItem_2"].code
    assert functions["getItem_2"].code.count("\n") == 2
    assert (functions["inner"].summary, functions["told"].summary) == ("", "All there is.")
    for name in ("__init__", "inner"):
        assert ast.parse(textwrap.dedent(functions[name].code.strip())).body[0].name == name


def test_the_tree_of_a_function_is_its_own(functions):
    kinds, parents = functions["inner"].kinds, functions["inner"].parents
    assert (kinds[0], parents[0]) == ("FunctionDef", -1)
    named = sorted(
        (kinds[parent], kind) for kind, parent in zip(kinds[1:], parents[1:], strict=True)
    )
    assert named == [
        ("BinOp", "Add"),
        ("BinOp", "Constant"),
        ("BinOp", "Name"),
        ("FunctionDef", "Return"),
        ("FunctionDef", "arguments"),
        ("Return", "BinOp"),
        ("arguments", "arg"),
    ]
    assert set(functions["told"].kinds) == {"FunctionDef", "arguments", "arg"}


def test_parts_of_names():
    assert data.parts("__setItem_2") == {"set", "item", "2"}
    assert data.parts("HTTPServer") == {"http", "server"}
    assert data.parts("do_GET") == {"do", "get"}


def test_graphs_have_the_edges_of_the_tree_and_parts_of_the_name_as_labels(functions):
    small = [functions["inner"], functions["told"], functions["__init__"]]
    kinds, edges, labels = data.graphs([*small, functions["getItem_2"]], nodes=8, labels=2).tensors
    assert kinds.shape == (3, 8)  # the largest is left out
    assert edges.sum((1, 2)).tolist() == [len(function.kinds) - 1 for function in small]
    assert (kinds > 0).sum(1).tolist() == [len(function.kinds) for function in small]
    for function, edge in zip(small, edges, strict=True):
        assert {(a, b) for a, b in edge.nonzero().tolist()} == {
            (p, k) for k, p in enumerate(function.parents) if p >= 0
        }
    assert labels.tolist() == [
        [1, 0],
        [0, 1],
        [0, 0],
    ]  # inner, told; of equally frequent parts the first


def test_translations_begin_end_and_are_padded(functions):
    codes, lines = data.translations(
        list(functions.values()), vocabulary=50, source=6, target=5
    ).tensors
    assert (codes.shape, lines.shape) == ((2, 6), (2, 6))  # two have a docstring
    assert lines[:, 0].tolist() == [BEGIN, BEGIN]
    assert lines[0, 4:].tolist() == [END, PAD]  # "return it ." is three words
    assert lines[1, 5] == END
    assert len(set(lines[0, 1:4].tolist()) | {PAD, BEGIN, END}) == 6
    assert codes[0, 0] == codes[1, 0] > END  # def


# --------------------------------------------------------------------------------------------- demo


def test_the_optimiser_is_nadam_with_decoupled_weight_decay_and_a_step_size_that_warms_up():
    module = workloads.Workload(stand_ins.Classifier(4, 3, width=8), "some", lr=0.1)
    module.trainer = Namespace(estimated_stepping_batches=100)
    settings = module.configure_optimizers()
    optimizer, schedule = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    assert (type(optimizer), settings["lr_scheduler"]["interval"]) == (torch.optim.NAdam, "step")
    group = optimizer.param_groups[0]
    assert (group["decoupled_weight_decay"], group["weight_decay"]) == (True, 0.01)
    factors = [schedule.lr_lambdas[0](step) for step in range(101)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[100] == pytest.approx(0.0)


def row(sigma, small, large, share, pair=(1.0, 0.5)):
    return {
        "informative_share": share,
        "informative_rates": "0.1 to 1",
        "interpolation_error": sigma,
        "drop": 2.0,
        "beta_min_0.1": small,
        "beta_min_1": large,
        "alpha": pair[0],
        "beta": pair[1],
    }


def test_findings_follow_the_numbers():
    control = row(0.1, 0.2, 3.0, 0.9)
    more = workloads.findings_of(
        {"a": row(1.0, 0.3, 4.0, 0.5, (1.0, 0.6)), workloads.CONTROL: control}
    )
    assert [found.verdict for found in more] == ["seen"] * 5
    assert (
        "0.3 (neighbourhood 1.5 of the drop); control 0.2 (neighbourhood 0.1 of the drop)"
        in more[2].numbers
    )
    less = workloads.findings_of(
        {"a": row(0.1, 0.2, None, 20 / 61, (None, None)), workloads.CONTROL: control}
    )
    assert [found.verdict for found in less] == ["not seen"] * 5
    assert less[3].numbers.startswith("none; control 3")


def test_all_workloads_have_all_settings():
    names = list(workloads.SMALL["workloads"])
    for setting in (workloads.SMALL, workloads.LARGER, workloads.FULL):
        assert list(setting["workloads"]) == names
        assert (
            setting["steps"] // setting["monitor"]["every_n_steps"]
            <= setting["monitor"]["max_probes"]
        )
    with pytest.raises(KeyError):
        workloads.data_of("another")


MINIATURE = {
    "most": 64,
    "steps": 6,
    "workloads": {
        "DLRM stand-in": {"lr": 1e-2, "batch_size": 16, "sizes": {"width": 4, "hidden": 8}},
        "U-Net stand-in": {"lr": 1e-2, "batch_size": 16, "sizes": {"channels": 2}},
        "GNN stand-in": {"lr": 1e-2, "batch_size": 16, "sizes": {"width": 8, "rounds": 1}},
        "Transformer stand-in": {"lr": 1e-2, "batch_size": 16, "sizes": {"width": 8, "depth": 1}},
        workloads.CONTROL: {"lr": 1e-2, "batch_size": 16, "sizes": {"width": 8}},
    },
    "monitor": {"every_n_steps": 2, "live_epochs": None},
    "trainer": {"accelerator": "cpu"},
}


@pytest.mark.slow
def test_the_demo_in_miniature_writes_runs_table_findings_and_picture(
    tmp_path, monkeypatch, functions
):
    many = (
        tuple(functions.values()) * 32
    )  # in the place of Python's library, which takes seconds to read
    monkeypatch.setattr(workloads, "library", lambda: many)
    monkeypatch.setattr(workloads, "data_of", workloads.data_of.__wrapped__)
    found = workloads.run(Options("small", tmp_path, (0, 1), None, Namespace()), MINIATURE)
    assert len(found) == 4 * 5
    assert all("stand-in" in finding.finding for finding in found)
    with (tmp_path / "workloads.csv").open(encoding="utf-8") as file:
        rows = {row["runs"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(MINIATURE["workloads"])
    assert {row["seeds"] for row in rows.values()} == {"2"}
    assert (tmp_path / "workloads.png").stat().st_size > 10_000
    assert len((tmp_path / "findings.csv").read_text(encoding="utf-8").splitlines()) == 21

    from lightning_landscape import load
    from lightning_landscape.reading.load import find_runs

    runs = [load(path) for path in find_runs(tmp_path)]
    assert len(runs) == 10
    for name, row_of in rows.items():
        own = [
            run.table.evaluated
            for run in runs
            if run.path.parent.parent.name == name.replace(" ", "-")
        ]
        assert len(own) == 2
        columns = [
            torch.cat([table.column(c) for table in own])
            for c in ("loss", "reference_loss", "inner_product")
        ]
        brute = max(
            0.0,
            *(
                ((a - b) - p) / b
                for a, b, p in zip(*(column.tolist() for column in columns), strict=True)
            ),
        )
        assert float(row_of["beta_min_1"]) == pytest.approx(brute)
        assert float(row_of["interpolation_error"]) == pytest.approx(float(columns[1].mean()))
