"""Lines as an experiment writes them, made up for tests."""

from worker.federated.experiments.records import Record


def line(setting: str, arm: str, seed: int, accuracy: float, client: str = "a") -> Record:
    """One client's line, whose accuracy after aggregation is given."""
    return Record(
        setting=setting,
        arm=arm,
        seed=seed,
        client=client,
        model="tiny",
        layers=4,
        hidden=32,
        rank=8,
        task="sst2",
        accuracy_initial=0.1,
        accuracy_after_local=0.2,
        accuracy_after_aggregation=accuracy,
        learning_rate="",
        round=3,
        bytes_up=0.0,
        update_cosine="",
        configuration="c",
    )
