-- How long is the line at each queue, and is somebody serving it?
-- `lag` is the age of the oldest job that could run now: the one figure worth an alarm. Growing lag with workers > 0:
-- add workers or slots. workers = 0: nobody subscribes to the queue; look at its spelling. Much `retrying`: see the
-- query `retrying`. `waiting` counts what is due, `later` what has its eta in the future; `retrying` jobs are among both.
-- One scan of `job`: 0.2 s for a million rows. Two counts over indexes and the heap took longer.
select coalesce(line.queue, served.queue) as queue,
       coalesce(line.waiting, 0) as waiting,
       coalesce(line.later, 0) as later,
       coalesce(line.running, 0) as running,
       coalesce(line.retrying, 0) as retrying,
       date_trunc('milliseconds', statement_timestamp() - line.oldest) as lag,
       coalesce(served.workers, 0) as workers
  from (select j.queue,
               count(*) filter (where j.worker is null and j.eta <= statement_timestamp()) as waiting,
               count(*) filter (where j.worker is null and j.eta > statement_timestamp()) as later,
               count(j.worker) as running,
               count(*) filter (where j.worker is null and j.retries + j.crashes > 0) as retrying,
               min(j.eta) filter (where j.worker is null and j.eta <= statement_timestamp()) as oldest
          from pgqueue.job j
         group by j.queue) line
  full join (select s.queue, count(distinct w.id) as workers
               from pgqueue.worker w
              cross join unnest(w.queues) as s (queue)
              where w.beat_at > statement_timestamp() - interval '30 seconds'
              group by s.queue) served using (queue)
 order by lag desc nulls last, queue
 limit 100;
