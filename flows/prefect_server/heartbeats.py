"""Flow runs whose machine is lost: when their heartbeats stop, the server calls them crashed."""

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture

NAME = "sjc: silent shards have crashed"
SILENCE = timedelta(seconds=90)  # three heartbeats


def crash_silent_runs() -> None:
    """Makes the server call a flow run crashed when its heartbeats stop; once for a server.

    Heartbeats come from runs with `PREFECT_FLOWS_HEARTBEAT_FREQUENCY` set (see environment.py).
    """
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(NAME):
            return
    ends = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")}
    heartbeat = "prefect.flow-run.heartbeat"
    Automation(
        name=NAME,
        description="A lost machine cannot report; another run then does its work.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *ends},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message="Its heartbeats stopped.",
                force=False,
            )
        ],
    ).create()
