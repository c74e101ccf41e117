"""Lightning, really training: equal to the plain loop bit for bit, resumed from its own checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plain_loop import ACCUMULATE, LR, RULE, examples, numbers, plain, quiet, regression, squared
from pool import Pool
from swarmstep import PSOPS, Every, Strategy, simulate
from swarmstep.comm.group import Group
from swarmstep.errors import UsageError
from swarmstep.integrations.alone import alone

pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")

BATCHES = 12  # of an epoch: 6 steps, so that it ends between the rounds of 4 and 8
EPOCHS = 2
CLIP = 0.5


def module(manual: bool = False) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = regression()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, number: int) -> Tensor:
            loss = squared(self.net, batch)
            if manual:
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        def configure_optimizers(self) -> Any:
            if manual:
                return parts(self.net)
            adam, schedule = optimizer_of(self.net)
            return [adam], [{"scheduler": schedule, "interval": "step"}]

    return Module()


def optimizer_of(model: torch.nn.Module) -> tuple[Any, Any]:
    adam = torch.optim.Adam(model.parameters(), LR)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0 - step / 100)


def parts(model: Any) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model[0].parameters(), LR), torch.optim.Adam(model[2].parameters(), LR)]


def loader(comm: Group, count: int = BATCHES) -> Any:
    return torch.utils.data.DataLoader(examples(comm, count), batch_size=None)


def trainer_of(folder: str, epochs: int, callbacks: list[Any], **arguments: Any) -> Any:
    quietly = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    with alone():
        return pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            callbacks=callbacks,
            default_root_dir=folder,
            **quietly,
            **arguments,
        )


def trained(comm: Group, folder: str, strategy: Strategy = RULE, resume: bool = False) -> list[float]:
    """Train two epochs; on resuming, the second of them."""
    from swarmstep.integrations.lightning import SwarmCallback

    with quiet():
        swarm = SwarmCallback(strategy, comm)
        save = pl.callbacks.ModelCheckpoint(dirpath=f"{folder}/{comm.rank}", filename="{epoch}", save_top_k=-1)
        wish: dict[str, Any] = {"accumulate_grad_batches": ACCUMULATE, "gradient_clip_val": CLIP}
        trainer = trainer_of(f"{folder}/{comm.rank}", EPOCHS, [swarm, save], **wish)
        model = module()
        path = f"{folder}/{comm.rank}/epoch=0.ckpt"
        trainer.fit(model, loader(comm), ckpt_path=path if resume else None)
    assert swarm.sync.steps == EPOCHS * BATCHES // ACCUMULATE
    return numbers(model)


def by_hand(comm: Group, strategy: Strategy = RULE) -> list[float]:
    model = regression()
    adam, schedule = optimizer_of(model)
    batches = examples(comm, BATCHES) * EPOCHS
    return plain(comm, model, adam, batches, strategy=strategy, schedule=schedule, clip=CLIP)


@pytest.mark.parametrize("strategy", [RULE, PSOPS(when=Every(2))], ids=["diloco", "pso-ps"])
def test_lightning_is_the_plain_loop(tmp_path: Path, strategy: Strategy) -> None:
    own = simulate(lambda comm: by_hand(comm, strategy), 2)
    assert simulate(lambda comm: trained(comm, str(tmp_path), strategy), 2) == own
    assert own[0] == own[1]


def test_it_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole = simulate(lambda comm: trained(comm, str(tmp_path)), 2)
    assert simulate(lambda comm: trained(comm, str(tmp_path), resume=True), 2) == whole


@pytest.mark.slow
def test_real_processes(tmp_path: Path, pool: Pool) -> None:
    whole = simulate(by_hand, 2)
    assert pool.run(trained, str(tmp_path), workers=2) == whole
    assert pool.run(trained, str(tmp_path), RULE, True, workers=2) == whole


def test_several_optimizers_by_hand(tmp_path: Path) -> None:
    """Manual optimization: the last of the optimizers ends the local step."""
    from swarmstep import Synchronizer
    from swarmstep.integrations.lightning import SwarmCallback

    def with_lightning(comm: Group) -> list[float]:
        model = module(manual=True)
        swarm = SwarmCallback(RULE, comm)
        trainer_of(f"{tmp_path}/{comm.rank}", 1, [swarm], enable_checkpointing=False).fit(model, loader(comm))
        assert swarm.sync.steps == BATCHES
        return numbers(model)

    def without(comm: Group) -> list[float]:
        model = regression()
        optimizers = parts(model)
        sync = Synchronizer(model, RULE, comm)
        for batch in examples(comm, BATCHES):
            loss = squared(model, batch)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            sync.step(loss, lr=optimizers)
        sync.finish()
        return numbers(model)

    assert simulate(with_lightning, 2) == simulate(without, 2)


def test_one_folder_for_two_workers_is_refused(tmp_path: Path) -> None:
    from swarmstep.integrations.lightning import SwarmCallback

    def train(comm: Group) -> None:
        trainer_of(str(tmp_path), 1, [SwarmCallback(RULE, comm)]).fit(module(), loader(comm, 2))

    with pytest.raises(UsageError, match="ranks 0 and 1 write their checkpoints to the same folder"):
        simulate(train, 2)
