-- Go on with a workflow where it has failed: its jobs that ended as FAILURE, REVOKED or REJECTED are enqueued again, under
-- their ids, and whatever ended because of them waits again. What has succeeded stays as it is. Answers how many jobs were
-- enqueued; 0: nothing of it has failed. Raises PQ002 where it cannot come to its end any more, because results are gone.
--   select pgqueue.retry_workflow('<root>');
create or replace function pgqueue.retry_workflow(p_root uuid) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_results uuid[];
    v_failed pgqueue.result[];
    v_parts pgqueue.part[];
    v_calls json;
    v_other uuid;
    v_steps uuid[];
    v_job record;
begin
    -- Jobs first, as whoever acknowledges them does: what is being acknowledged now is seen then.
    perform from pgqueue.job j
      where j.id = any(array(select o.id from pgqueue.job o where o.root_id = p_root) || p_root)
      order by j.id for update;
    v_results := array(select r.id from pgqueue.result r where r.root_id = p_root);
    with gone as (
        delete from pgqueue.result r
         where r.id = any(array(
               -- By id alone, and not `in`: else this may become a walk over all that has ever failed.
               select o.id from pgqueue.result o
                where o.id = any(v_results) and (o.state in ('SUCCESS', 'IGNORED')) is false and o.again is not null
                order by o.id for update))
        returning r
    )
    select array_agg(g.r order by (g.r).id) into v_failed from gone g;
    if v_failed is null then
        return 0;
    end if;
    -- What has followed the failure follows the next one too.
    for v_n in 1 .. cardinality(v_failed) loop
        if v_failed[v_n].again -> 'errbacks' is not null then
            v_failed[v_n].again := pgqueue.json_with(v_failed[v_n].again, json_build_object(
                'errbacks', pgqueue.calls_anew(v_failed[v_n].again -> 'errbacks')));
        end if;
    end loop;

    insert into pgqueue.step (id, made_at, root_id, steps, members, waits, place, depth, takes, task, call)
    select f.id, v_now, p_root, a.steps, a.waits, a.waits, coalesce(a.place, 0), coalesce(a.depth, 0::smallint), a.takes, a.task,
           f.again
      from unnest(v_failed) f
     cross join lateral json_to_record(f.again) as a (
           steps uuid[], waits integer, place integer, depth smallint, takes text, task text)
     where a.waits > 0;

    v_steps := array(select f.id from unnest(v_failed) f where f.again ->> 'waits' is not null);
    -- A member that is run again counts once more in steps that still wait.
    for v_job in
        select s.id as step, coalesce((f.again ->> 'place')::integer, 0) as place
          from unnest(v_failed) f
         cross join lateral unnest(f.steps) s (id)
         where s.id <> all(v_steps)
         order by s.id
    loop
        perform from pgqueue.step s where s.id = v_job.step for update;
        delete from pgqueue.part t where t.step = v_job.step and t.place = v_job.place and t.state <> 'SUCCESS';
        if found then
            update pgqueue.step s set waits = s.waits + 1 where s.id = v_job.step;
        end if;
    end loop;

    select json_agg(pgqueue.json_with(pgqueue.without_nulls(json_build_object(
               'id', f.id, 'task', f.task, 'queue', f.queue, 'priority', f.priority, 'headers', f.headers, 'args', f.args,
               'kwargs', f.kwargs, 'options', f.options, 'parent_id', f.parent_id, 'root_id', p_root,
               'attempt', f.attempt, 'checked', true)), f.again))
      into v_calls
      from unnest(v_failed) f
     where f.again ->> 'waits' is null;
    if v_calls is not null then
        select m.other into v_other from pgqueue.enqueue_members(v_calls) m;
        if v_other is not null then
            raise exception 'job % has the unique_key of one that failed, and has not ended', v_other
                using errcode = 'PQ002', hint = 'Wait until it has ended, and try again.';
        end if;
    end if;

    -- What members had come to counts anew, but for those that are run again.
    with gone as (
        delete from pgqueue.part t where t.step = any(v_steps) returning t
    )
    select array_agg(g.t) into v_parts from gone g where (g.t).state in ('SUCCESS', 'IGNORED');
    select s.id into v_other
      from pgqueue.step s
     where s.id = any(v_steps)
       and s.members > (select count(*) from unnest(v_parts) p where p.step = s.id)
                       + (select count(*) from pgqueue.job j where j.root_id = p_root and s.id = any(j.steps))
                       + (select count(*) from pgqueue.step o where o.root_id = p_root and s.id = any(o.steps))
     limit 1;
    if found then
        raise exception 'step % would wait for ever: the result of one of its members is gone, or was not kept', v_other
            using errcode = 'PQ002', hint = 'Enqueue the workflow anew.';
    end if;
    perform pgqueue.count_in(v_parts) where v_parts is not null;
    return coalesce(json_array_length(v_calls), 0);
end
$$;
