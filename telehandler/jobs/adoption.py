"""After a restart of the api: jobs that the helper runs go on, those it does not know were lost."""

import uuid as uuids

from telehandler.common.errors import HelperUnavailable
from telehandler.common.states import Reason, State
from telehandler.jobs.helper_link import HelperLink, LiveJob
from telehandler.jobs.helper_requests import release
from telehandler.jobs.job import Job, ended_job
from telehandler.jobs.lifecycle import Lifecycle
from telehandler.jobs.records import Record, Records


async def adopt(link: HelperLink, records: Records, lifecycle: Lifecycle) -> None:
    """Greets the helper, and takes up or ends every job that is recorded as running.

    A helper that is dead knows none. Raises HelperUnavailable for one that lives and does not answer.
    """
    recorded = {record.uuid: record for record in records.running()}
    begun = {record.uuid: record for record in records.begun()}
    try:
        _, adopted = await link.hello()
    except HelperUnavailable:
        if not link.closed:
            raise
        adopted = []
    for tag, live in adopted:
        uuid = str(uuids.UUID(bytes=tag))
        record = recorded.pop(uuid, None) or begun.pop(uuid, None)
        if record is None and records.get(uuid):  # the api before died between its record and RELEASE
            live.close()
            lifecycle.spawn(release(link, live.handle))
            continue
        if record and not record.job_uid:  # it died after START; the client has a request id to ask again with
            record.job_uid = live.uid
            records.save(record)
        # No record: it died between START and its record, and nobody knows of the job.
        await _take_up(record or Record(uuid, "", []), live, link, lifecycle)
    for record in recorded.values():
        _lose(record, lifecycle)
    for record in begun.values():  # never ran, or died with its helper unseen: who asks again starts it
        records.forget(record)


async def _take_up(record: Record, live: LiveJob, link: HelperLink, lifecycle: Lifecycle) -> None:
    log = lifecycle.new_log(record)
    log.recount()
    job = Job(record, log)
    lifecycle.follow(job, log, live, link)
    if not record.owner:
        await lifecycle.kill(job)
    elif job.stopping:
        lifecycle.kill_when_due(job)


def _lose(record: Record, lifecycle: Lifecycle) -> None:
    log = lifecycle.new_log(record)
    log.recount()
    lifecycle.end(record, State.FAILED, Reason.LOST, log)
    log.release()
    lifecycle.running[record.uuid] = ended_job(record)
    lifecycle.spawn(lifecycle.save_end(record))
