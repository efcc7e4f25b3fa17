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
    v_from uuid;
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
    delete from pgqueue.saved_group g
     where g.id = any(array(
           select o.id from pgqueue.saved_group o
            where o.saved_at < v_before
            order by o.saved_at limit p_limit for update skip locked));
    -- What is left of wide chords, and of workflows that failed and whose results are gone. Of 100 steps from somewhere on,
    -- and of others while there is some: a walk over all would take 1 s beside the parts of 100,000 steps that wait.
    for i in 1 .. 50 loop
        v_from := pgqueue.id_between((select p.step from pgqueue.part p order by p.step limit 1),
                                     (select p.step from pgqueue.part p order by p.step desc limit 1), random());
        delete from pgqueue.part t
         where t.step = any(array(
               with recursive step (id, n, again) as (
                   select (select p.step from pgqueue.part p where p.step >= v_from order by p.step limit 1), 1, false
                    union all
                   -- After the last of them the first: of 100 or fewer none is passed over.
                   select case when s.id is not null
                               then (select p.step from pgqueue.part p where p.step > s.id order by p.step limit 1)
                               else (select p.step from pgqueue.part p where p.step < v_from order by p.step limit 1) end,
                          s.n + 1, s.again or s.id is null
                     from step s
                    where s.n < 102 and not (s.again and (s.id is null or s.id >= v_from))
               )
               select distinct s.id from step s
                -- Not `exists`, which may become a join that walks over all.
                where s.id is not null
                  and (select true from pgqueue.step o where o.id = s.id limit 1) is null
                  and coalesce((select r.state from pgqueue.result r where r.id = s.id limit 1), 'SUCCESS') = 'SUCCESS'));
        exit when not found;
    end loop;
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
