-- What runs next? The 50 jobs at the head of the lines: higher priority first, then the earlier eta.
-- A job that stands here for long although workers are idle: they do not subscribe to its queue (query `workers`), or
-- do not know its task (their column `unknown`). A worker serves its queues in its own order, so between two queues
-- this is only the order of priorities.
-- Each queue and priority is probed for itself with one index range scan, as `claim` does; nothing sorts the backlog.
with recursive line as (
    (select j.queue from pgqueue.job j order by j.queue limit 1)
     union all
    select (select n.queue from pgqueue.job n where n.queue > line.queue order by n.queue limit 1)
      from line
     where line.queue is not null
)
select head.id,
       head.queue,
       head.priority,
       head.task,
       date_trunc('milliseconds', statement_timestamp() - head.eta) as due_for,
       head.retries,
       head.attempt,
       head.unique_key
  from line
 cross join generate_series(9, 0, -1) as level
 cross join lateral (
       select j.id, j.queue, j.priority, j.task, j.eta, j.retries, j.attempt, j.unique_key
         from pgqueue.job j
        where j.queue = line.queue and j.priority = level and j.eta <= statement_timestamp() and j.worker is null
        order by j.eta
        limit 50) head
 where line.queue is not null
 order by head.priority desc, head.eta, head.id
 limit 50;
