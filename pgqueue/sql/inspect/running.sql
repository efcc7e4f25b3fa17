-- What is running, who runs it, and since when? The longest first, at most 50.
-- A job that runs far longer than its task usually does (query `slow`) hangs: look at that process on its host.
-- beat_age above 30 s: the worker is dead or cut off, and the next sweep takes the job back; nothing to do.
-- A row without a worker's name belongs to one already struck off the list; it is taken back too.
select j.id,
       j.task,
       j.queue,
       date_trunc('milliseconds', statement_timestamp() - j.claimed_at) as running_for,
       j.attempt,
       w.name as worker,
       w.host,
       w.pid,
       date_trunc('milliseconds', statement_timestamp() - w.beat_at) as beat_age,
       j.revoked
  from pgqueue.job j
  left join pgqueue.worker w on w.id = j.worker
 where j.worker is not null
 order by j.claimed_at, j.id
 limit 50;
