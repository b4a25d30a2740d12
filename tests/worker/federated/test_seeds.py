import torch

from worker.federated.seeds import derive_seed, generator

SLOTS_SEED = 0x4544BC25F6B7005D >> 1


def test_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = [
        derive_seed(*parts)
        for parts in ((1, "a"), (1, "b"), (2, "a"), ("a", 1), ("1", "a"), (1, "a", 0), (11, ""))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_on_every_machine() -> None:
    # SHA-256 of "int:7\x1fstr:slots", first eight bytes, big endian, without the last bit.
    assert derive_seed(7, "slots") == SLOTS_SEED
    assert torch.equal(
        torch.rand(3, generator=generator(7, "slots")),
        torch.rand(3, generator=torch.Generator().manual_seed(SLOTS_SEED)),
    )
