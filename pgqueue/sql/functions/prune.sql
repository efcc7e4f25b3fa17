-- Delete results older than p_keep, the oldest first, at most p_limit: small batches, so that nobody waits long. Beside
-- them what processes that were killed have left behind. Workers call it about once a second while it finds something, else once a minute. Answers how many it deleted.
--   select pgqueue.prune('1 day', 1000);
create or replace function pgqueue.prune(p_keep interval, p_limit integer default 1000) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp set lock_timeout = '2s' set enable_seqscan = off
as $$
declare
    v_before timestamptz := pgqueue.clock() - p_keep;
    v_count integer;
begin
    delete from pgqueue.result r
     where r.id = any(array(
           select o.id from pgqueue.result o
            where o.finished_at < v_before
            order by o.finished_at limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    -- What a process that waited for a result left behind when it was killed.
    delete from pgqueue.waiter w where w.until < v_before + p_keep;
    delete from pgqueue.idle i where i.until < v_before + p_keep;
    delete from pgqueue.saved_group g where g.saved_at < v_before;
    -- What is left of workflows that failed and whose results are gone.
    -- Step by step, so that nobody walks over all the parts of those that live.
    with recursive step (id) as (
        (select p.step from pgqueue.part p order by p.step limit 1)
         union all
        select (select p.step from pgqueue.part p where p.step > s.id order by p.step limit 1) from step s where s.id is not null
    )
    delete from pgqueue.part t
     where t.step = any(array(
           select s.id from step s
            where not exists (select from pgqueue.step o where o.id = s.id)
              and not exists (select from pgqueue.result r where r.id = s.id and r.state <> 'SUCCESS')));
    -- What was said of attempts that are over; a minute, so that none is taken for one that has just begun.
    delete from pgqueue.progress p
     where p.job = any(array(
           select o.job from pgqueue.progress o
            where o.at < v_before + p_keep - interval '1 minute'
              and not exists (select from pgqueue.job j
                               where j.id = o.job and j.attempt = o.attempt and j.worker is not distinct from o.worker)
            limit p_limit for update skip locked));
    return v_count;
end
$$;
