import pickle

import pytest
import torch
from torch import nn

from allrec.backbones.pretrained import import_sasrec
from allrec.errors import InputError


class TwoConvolutions(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(dim, dim, 1), nn.Conv1d(dim, dim, 1)

    def forward(self, x):
        return self.conv2(self.conv1(x.mT).relu()).mT


class PublicLayout(nn.Module):
    """The names and shapes of a public checkpoint, ids from 1, left padding with 0, torch's own attention."""

    def __init__(self, norm, padding, dim=8, heads=2, num_items=12, max_length=6, blocks=2):
        super().__init__()
        self.norm, self.padding, self.max_length, self.dim = norm, padding, max_length, dim
        self.item_emb = nn.Embedding(num_items + 1, dim)
        self.pos_emb = nn.Embedding(max_length + (padding == "carried"), dim)
        self.attention_layernorms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in range(blocks))
        self.attention_layers = nn.ModuleList(nn.MultiheadAttention(dim, heads) for _ in range(blocks))
        self.forward_layernorms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in range(blocks))
        self.forward_layers = nn.ModuleList(TwoConvolutions(dim) for _ in range(blocks))
        self.last_layernorm = nn.LayerNorm(dim, eps=1e-8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.5)
        if padding == "carried":
            self.item_emb.weight.data[0] = 0
            self.pos_emb.weight.data[0] = 0

    def attend(self, index, query, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        output, _ = self.attention_layers[index](
            query.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), attn_mask=mask
        )
        return output.transpose(0, 1)

    def block(self, index, x):
        first, second, network = (
            self.attention_layernorms[index],
            self.forward_layernorms[index],
            self.forward_layers[index],
        )
        if self.norm == "query":
            x = second(first(x) + self.attend(index, first(x), x))
            return x + network(x)
        if self.norm == "pre":
            x = x + self.attend(index, first(x), first(x))
            return x + network(second(x))
        x = first(x + self.attend(index, x, x))
        return second(x + network(x))

    def forward(self, history):
        ids = torch.tensor([[0] * (self.max_length - len(history)) + [item + 1 for item in history]])
        is_item = (ids > 0).unsqueeze(-1)
        places = torch.arange(self.max_length)[None]
        positions = (places + 1) * (ids > 0) if self.padding == "carried" else places
        x = self.item_emb(ids) * self.dim**0.5 + self.pos_emb(positions)
        x = x if self.padding == "carried" else x * is_item
        for index in range(len(self.attention_layers)):
            x = self.block(index, x)
            x = x if self.padding == "carried" else x * is_item
        return self.last_layernorm(x)[0, -1]


@pytest.mark.parametrize(
    ("norm", "padding"), [("query", "zeroed"), ("query", "carried"), ("pre", "carried"), ("post", "carried")]
)
def test_a_public_checkpoint_gives_the_same_outputs(tmp_path, norm, padding):
    public = PublicLayout(norm, padding).requires_grad_(False)
    torch.save(public.state_dict(), tmp_path / "sasrec.pth")
    ours = import_sasrec(tmp_path / "sasrec.pth", heads=2, norm=norm)
    assert (ours.num_items, ours.dim, ours.max_length, ours.config.padding) == (12, 8, 6, padding)
    torch.testing.assert_close(ours.item_embeddings(), public.item_emb.weight[1:])
    for history in ([4], [0, 11, 3], [1, 2, 3, 4, 5, 6]):
        torch.testing.assert_close(ours.encode(torch.tensor([history]))[0], public(history), rtol=1e-5, atol=1e-5)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


class Hostile:
    def __reduce__(self):
        return (open, ("hostile-was-here", "w"))


def test_a_hostile_pickle_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"item_emb.weight": Hostile()}, "hostile.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.pth", "bare.pth"):
        with pytest.raises(InputError, match=f"{name} holds more than tensors"):
            import_sasrec(name)
    assert not (tmp_path / "hostile-was-here").exists()


def test_a_pair_with_arguments_is_refused_with_what_to_do(tmp_path):
    state = PublicLayout("query", "zeroed").state_dict()
    torch.save([{"item_num": 12}, state], tmp_path / "pair.pth")
    with pytest.raises(InputError, match=r"holds a list, expected a dict of nothing but tensors.*pair\[1\]"):
        import_sasrec(tmp_path / "pair.pth")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "c.pth"
    with pytest.raises(InputError, match="no such file"):
        import_sasrec(path)
    path.write_text("text")
    with pytest.raises(InputError, match="is no checkpoint"):
        import_sasrec(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"lacks the tensor 'item_emb.weight'.*it holds weight"):
        import_sasrec(path)
    state = PublicLayout("query", "zeroed").state_dict()
    torch.save(state | {"last_layernorm.bias": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="tensors of other shapes"):
        import_sasrec(path, heads=2)
    torch.save(state | {"last_layernorm.bias": torch.full((8,), torch.nan)}, path)
    with pytest.raises(InputError, match=r"numbers in last_layernorm.bias that are not finite"):
        import_sasrec(path, heads=2)
    torch.save(state, path)
    with pytest.raises(InputError, match="multiple of heads"):
        import_sasrec(path, heads=3)
    with pytest.raises(InputError, match="row 0, is all zeros"):
        import_sasrec(path, heads=2, padding="carried")
