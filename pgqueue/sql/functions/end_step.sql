-- End a step that will not run, as what it waited for has ended: its result is stored, and whoever waits for it is told.
-- Part of count_in and revoke, which have deleted its row and count it where it counts. p_parent: the member that ended it.
--   select pgqueue.end_step(s, 'REVOKED', '{"type": "TaskRevokedError"}', null) from pgqueue.step s where id = '<step>';
create or replace function pgqueue.end_step(p_step pgqueue.step, p_state text, p_error json, p_parent uuid, p_value json default null)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_call record;
begin
    select * into v_call
      from json_to_record(p_step.call) as c (
           args json, kwargs json, queue text, priority smallint, headers json, options json, parent_id uuid);
    insert into pgqueue.result as r (
           id, enqueued_at, finished_at, root_id, parent_id, attempt, retries, crashes, priority, state, task, queue, args,
           kwargs, headers, options, steps, value, error, again)
    values (p_step.id, p_step.made_at, v_now, p_step.root_id, coalesce(p_parent, v_call.parent_id), 0, 0, 0,
           coalesce(v_call.priority, 5), p_state, coalesce(p_step.task, 'pg' || 'queue.gather'),
           coalesce(v_call.queue, 'default'), coalesce(v_call.args, '[]'), coalesce(v_call.kwargs, '{}'), v_call.headers,
           v_call.options, p_step.steps, p_value, p_error,
           case when p_state <> 'SUCCESS' then pgqueue.json_with(p_step.call, json_build_object(
               'steps', p_step.steps, 'place', p_step.place, 'depth', p_step.depth, 'waits', nullif(p_step.members, 0))) end)
        on conflict (id) do update
       set enqueued_at = excluded.enqueued_at, claimed_at = null, finished_at = excluded.finished_at, worker = null,
           root_id = excluded.root_id, parent_id = excluded.parent_id, attempt = greatest(r.attempt, excluded.attempt),
           runtime = null, priority = excluded.priority, state = excluded.state, task = excluded.task,
           queue = excluded.queue, args = excluded.args, kwargs = excluded.kwargs, headers = excluded.headers,
           options = excluded.options, history = null, steps = excluded.steps, value = excluded.value,
           error = excluded.error, again = excluded.again
     where r.state <> 'SUCCESS';
    perform pg_notify('pgqueue.done', w.job::text)
       from (select distinct w.job from pgqueue.waiter w where w.job = p_step.id) w;
end
$$;
