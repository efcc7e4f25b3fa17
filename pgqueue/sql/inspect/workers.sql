-- Which workers are there, do they live, and what have they to do? At most 100, the silent ones first.
-- alive = false: no beat for 30 s; a sweep is about to take its jobs back and to strike it off. running = slots: it is
-- full. `unknown`: tasks that it met and does not know; it runs older code, or its app does not import them.
select w.name,
       w.beat_at > statement_timestamp() - interval '30 seconds' as alive,
       date_trunc('milliseconds', statement_timestamp() - w.beat_at) as beat_age,
       w.pool,
       w.slots,
       coalesce(r.running, 0) as running,
       w.queues,
       w.unknown,
       w.host,
       w.pid,
       date_trunc('seconds', w.started_at) as started_at,
       w.id
  from pgqueue.worker w
  left join (select j.worker, count(*) as running
               from pgqueue.job j
              where j.worker is not null
              group by j.worker) r on r.worker = w.id
 order by alive, w.name, w.id
 limit 100;
