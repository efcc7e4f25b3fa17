-- The newest workflows, by the ids of their roots, and how far each is: the first 1,000 roots are looked at.
--   select * from pgqueue.workflows(20);
-- p_failed: only those of which something has failed, the latest first; the last 10,000 results of each kind are looked at.
-- A job whose task has enqueued others is no workflow, although they have it as their root.
create or replace function pgqueue.workflows(p_limit integer, p_failed boolean default false) returns table (
    id uuid, task text, total bigint, done bigint, failed bigint, running bigint, waiting bigint, made_at timestamptz,
    last_at timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_roots uuid[];
    v_found uuid[] := '{}';
    v_root uuid;
begin
    if p_failed then
        v_roots := array(
            select l.root_id
              from unnest(array['FAILURE', 'REVOKED', 'REJECTED']) s (state)
             cross join lateral (
                   select r.root_id, r.finished_at from pgqueue.result r
                    where r.state = s.state and r.state <> 'SUCCESS'
                    order by r.finished_at desc
                    limit 10000) l
             where l.root_id is not null
             group by l.root_id
             order by max(l.finished_at) desc, l.root_id
             limit 1000);
    else
        -- From root to root along the indexes: a root may have a million jobs.
        with recursive newest (root, n) as (
            select greatest(
                       (select j.root_id from pgqueue.job j where j.root_id is not null order by j.root_id desc limit 1),
                       (select s.root_id from pgqueue.step s order by s.root_id desc limit 1),
                       (select r.root_id from pgqueue.result r where r.root_id is not null order by r.root_id desc limit 1)), 1
             union all
            select greatest(
                       (select j.root_id from pgqueue.job j where j.root_id < b.root order by j.root_id desc limit 1),
                       (select s.root_id from pgqueue.step s where s.root_id < b.root order by s.root_id desc limit 1),
                       (select r.root_id from pgqueue.result r where r.root_id < b.root order by r.root_id desc limit 1)), b.n + 1
              from newest b
             where b.root is not null and b.n < 1000
        )
        select array_agg(b.root order by b.n) into v_roots from newest b where b.root is not null;
    end if;

    foreach v_root in array coalesce(v_roots, '{}') loop
        exit when cardinality(v_found) >= p_limit;
        if not exists (select from pgqueue.job j where j.id = v_root and j.root_id is null)
           and not exists (select from pgqueue.result r where r.id = v_root and r.root_id is null)
           -- A workflow may follow a job by a link. A task that has enqueued a million others is looked at in part.
           or exists (select from pgqueue.step s where s.root_id = v_root)
           or exists (select from (select j.steps from pgqueue.job j where j.root_id = v_root limit 100) x where x.steps is not null)
           or exists (select from (select r.steps from pgqueue.result r where r.root_id = v_root limit 100) x
                       where x.steps is not null) then
            v_found := v_found || v_root;
        end if;
    end loop;

    return query
    select w.id,
           coalesce((select j.task from pgqueue.job j where j.id = w.id),
                    (select s.task from pgqueue.step s where s.id = w.id),
                    (select r.task from pgqueue.result r where r.id = w.id and r.task <> 'pg' || 'queue.gather'),
                    (select j.task from pgqueue.job j where j.root_id = w.id limit 1),
                    (select r.task from pgqueue.result r where r.root_id = w.id and r.task <> 'pg' || 'queue.gather' limit 1)),
           w.total, w.done, w.failed, w.running, w.waiting, w.made_at, w.last_at
      from unnest(v_found) with ordinality as f (id, n)
     -- Each by itself: the view would be made of all workflows.
     cross join lateral (select v.* from pgqueue.workflow v where v.id = f.id offset 0) w
     order by f.n;
end
$$;
