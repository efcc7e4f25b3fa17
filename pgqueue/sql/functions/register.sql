-- Enter a worker in the list, or renew its entry. Answers whether it was not on it: the first time, or because it had
-- been given up for dead, and then its leases are gone.
--   select pgqueue.register('{"id": "..", "name": "a@host", "host": "host", "boot": "..", "pid": 1, "pid_started": 1,
--                            "pool": "solo", "slots": 1, "queues": ["default"], "at_most_once": [], "locked": true}');
create or replace function pgqueue.register(p_worker json) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_new boolean;
begin
    insert into pgqueue.worker as w (id, name, host, boot, pid, pid_started, pool, slots, queues, at_most_once, fail_if_lost,
                                     hooked, locked, started_at, beat_at)
    select g.id, g.name, g.host, g.boot, g.pid, g.pid_started, g.pool, g.slots, g.queues, coalesce(g.at_most_once, '{}'),
           coalesce(g.fail_if_lost, '{}'), coalesce(g.hooked, '{}'), coalesce(g.locked, false), v_now, v_now
      from json_to_record(p_worker) as g (
           id uuid, name text, host text, boot text, pid integer, pid_started bigint, pool text, slots integer,
           queues text[], at_most_once text[], fail_if_lost text[], hooked text[], locked boolean)
        on conflict (id) do update set beat_at = excluded.beat_at, locked = excluded.locked
    returning w.xmax = 0 into v_new;  -- a row that was there carries the lock of this update
    return v_new;
end
$$;
