-- Revoke a job, durably. A waiting one ends as REVOKED now; a running one may finish, but is not started again;
-- a finished one stays as it is. So do steps that wait: whatever waits for the job, or for the step, ends with it. Answers the state that it has afterwards, or UNKNOWN.
--   select pgqueue.revoke('<job>');
create or replace function pgqueue.revoke(p_job uuid) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_job pgqueue.job;
    v_state text;
    v_step pgqueue.step;
    -- The name of the module in two parts: the whole word means the schema.
    v_error json := json_build_object('type', 'TaskRevokedError', 'module', 'pg' || 'queue.errors', 'message', 'revoked');
begin
    select * into v_job from pgqueue.job j where j.id = p_job for update;
    if not found then
        delete from pgqueue.step s where s.id = p_job returning * into v_step;
        if found then
            perform pgqueue.end_step(v_step, 'REVOKED', v_error, null);
            perform pgqueue.count_in(array(
                    select row(n.id, v_step.place, p_job, 'REVOKED', p_job, v_step.depth, null, v_error)::pgqueue.part
                      from unnest(v_step.steps) n (id)));
            return 'REVOKED';
        end if;
        -- The commit that was waited for may have made a job of the step.
        select * into v_job from pgqueue.job j where j.id = p_job for update;
    end if;
    if v_job.id is null then
        select r.state into v_state from pgqueue.result r where r.id = p_job;
        return coalesce(v_state, 'UNKNOWN');
    elsif v_job.worker is not null then
        update pgqueue.job j set revoked = true where j.id = p_job and not j.revoked;
        return 'STARTED';
    end if;
    delete from pgqueue.job j where j.id = p_job;
    insert into pgqueue.result (
           id, enqueued_at, finished_at, root_id, parent_id, attempt, retries, crashes, priority, state, task,
           queue, args, kwargs, headers, options, history, steps, error)
    values (v_job.id, v_job.enqueued_at, v_now, v_job.root_id, v_job.parent_id, v_job.attempt, v_job.retries,
           v_job.crashes, v_job.priority, 'REVOKED', v_job.task, v_job.queue, v_job.args, v_job.kwargs,
           v_job.headers, v_job.options, v_job.history, v_job.steps, v_error)
        on conflict (id) do update
       set enqueued_at = excluded.enqueued_at, claimed_at = null, finished_at = excluded.finished_at, worker = null,
           attempt = excluded.attempt, retries = excluded.retries, crashes = excluded.crashes, runtime = null,
           priority = excluded.priority, state = excluded.state, task = excluded.task, queue = excluded.queue,
           args = excluded.args, kwargs = excluded.kwargs, headers = excluded.headers,
           options = excluded.options, history = excluded.history, steps = excluded.steps, value = null, error = excluded.error;
    if exists (select from pgqueue.progress) then
        perform pgqueue.end_progress(array[p_job]);
    end if;
    if exists (select from pgqueue.waiter w where w.job = p_job) then
        perform pg_notify('pgqueue.done', p_job::text);
    end if;
    if v_job.root_id is not null then
        perform pgqueue.keep_calls(array[v_job]);
    end if;
    perform pgqueue.count_in(array(
            select row(n.id, v_job.place, p_job, 'REVOKED', p_job, v_job.depth, null, v_error)::pgqueue.part
              from unnest(v_job.steps) n (id)));
    return 'REVOKED';
end
$$;
