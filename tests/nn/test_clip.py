import pytest
import torch
from torch import nn

from stimg.nn import CLIPModule


class Encoder(nn.Module):
    """Mean colour through a linear layer, with a batch norm."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, tiles):
        return self.norm(self.linear(tiles.float().mean((1, 2)) / 255))


def batch(n=6, n_image=9, n_gene=5):
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randn(n, n_image, generator=generator), "gene": torch.randn(n, n_gene, generator=generator)}


def test_forward_is_its_parts():
    net = CLIPModule(9, 5, n_dim=4, n_expression=5, n_batches=3).eval()
    own = batch()
    out = net(own)
    torch.testing.assert_close(out["image"], net.embed_image(own["image"]))
    torch.testing.assert_close(out["gene"], net.embed_gene(own["gene"]))
    torch.testing.assert_close(out["expression"], net.decoder(out["image"]))
    assert out["batch"].shape == (12, 3)
    assert set(CLIPModule(9, 5)(own)) == {"image", "gene"}


def test_axes_are_at_most_the_columns():
    net = CLIPModule(9, 5, image_components=64, gene_components=50)
    assert net.image_axes.axes.shape == (9, 9)
    assert net.gene_encoder.axes.shape == (5, 5)
    net = CLIPModule(9, 5, image_components=4, gene_components=2)
    assert net.image_head.linear.in_features == 4
    assert net.gene_head.linear.in_features == 2
    assert CLIPModule(9, 5, image_components=None, gene_encoder="linear").gene_head.linear.in_features == 5


def test_tiles_go_through_the_encoder_field_by_field():
    encoder = Encoder().eval()
    net = CLIPModule(8, 5, encoder=encoder).eval()
    tiles = torch.randint(0, 255, (3, 2, 6, 6, 3), dtype=torch.uint8)
    wanted = torch.cat([encoder(tiles[:, 0]), encoder(tiles[:, 1])], dim=1)
    torch.testing.assert_close(net.features(tiles), wanted)
    torch.testing.assert_close(net.embed_image(tiles), net.embed_image(wanted))


def test_a_frozen_encoder_stays_as_it_is():
    encoder = Encoder()
    for p in encoder.parameters():
        p.requires_grad_(False)
    net = CLIPModule(4, 5, encoder=encoder).train()
    assert not any(m.training for m in encoder.modules())
    assert not any(name.startswith("encoder.") for name in net.kept_state())
    encoder.linear.weight.requires_grad_(True)
    net.train()
    assert encoder.linear.training
    assert not encoder.norm.training
    assert [n for n in net.kept_state() if n.startswith("encoder.")] == ["encoder.linear.weight"]


def test_what_is_not_there_says_so():
    net = CLIPModule(9, 5)
    with pytest.raises(ValueError, match="no image encoder"):
        net.features(torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no decoder"):
        net.decode(torch.zeros(1, 128))
