-- Which tasks take the time? Run times in seconds, over the latest 10,000 results; the largest total first.
-- `total` says where the time of the workers goes. p95 or max far above p50: some calls are much heavier, or wait for
-- something; give them a queue of their own, so that quick jobs do not stand behind them.
select r.task,
       count(*) as jobs,
       round(sum(r.runtime)::numeric, 3) as total,
       round(avg(r.runtime)::numeric, 4) as average,
       round(percentile_cont(0.5) within group (order by r.runtime)::numeric, 4) as p50,
       round(percentile_cont(0.95) within group (order by r.runtime)::numeric, 4) as p95,
       round(max(r.runtime)::numeric, 4) as max
  from (select l.task, l.runtime
          from pgqueue.result l
         order by l.finished_at desc
         limit 10000) r
 where r.runtime is not null
 group by r.task
 order by total desc, r.task
 limit 50;
