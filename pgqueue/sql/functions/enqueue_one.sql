-- Enqueue one call that needs nothing looked up: a fresh id, no unique key, no continuation, to be started at once. The
-- client's `delay` ends here; it is enqueue_many for the commonest case, at a third of its cost.
--   select pgqueue.enqueue_one(pgqueue.new_id(), 'shop.add', '[2, 3]', '{}', 'default', 5::smallint);
-- An id that is there already raises unique_violation: where that may be, call enqueue_many with known = true.
-- p_durable asks for a synchronous commit whatever the session says (for callers who own the transaction).
create or replace function pgqueue.enqueue_one(
    p_id uuid,
    p_task text,
    p_args json,
    p_kwargs json,
    p_queue text,
    p_priority smallint,
    p_ignore_result boolean default null,
    p_root_id uuid default null,
    p_parent_id uuid default null,
    p_durable boolean default false
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
    -- As the function clock says it, which costs a tenth of all that is done here.
    v_now timestamptz := coalesce(
        nullif(current_setting('pgqueue_clock.now', true), '')::timestamptz, clock_timestamp());
    v_called boolean;
begin
    if p_durable and current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    insert into pgqueue.job as j (
           id, task, args, kwargs, queue, priority, eta, enqueued_at, ignore_result, root_id, parent_id)
    values (p_id, p_task, p_args, p_kwargs, p_queue, p_priority, v_now, v_now, p_ignore_result, p_root_id, p_parent_id)
    returning (select true from pgqueue.idle i where i.queue = p_queue and i.until > v_now limit 1) into v_called;
    if v_called then
        perform pg_notify('pgqueue.work', p_queue);
    end if;
end
$$;
