-- Revoke all of a workflow that has not begun: its waiting jobs and its steps end as REVOKED. What runs may finish, and is
-- not started again. Answers how many jobs and steps there were.
--   select pgqueue.revoke_workflow('<root>');
create or replace function pgqueue.revoke_workflow(p_root uuid) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    -- The name of the module in two parts: the whole word means the schema.
    v_error json := json_build_object('type', 'TaskRevokedError', 'module', 'pg' || 'queue.errors', 'message', 'revoked');
    v_jobs uuid[];
    v_count integer;
begin
    -- Jobs before steps, as whoever acknowledges them does.
    v_jobs := array(select j.id from pgqueue.job j
                     -- In two looks: an OR of the two may be a walk over the whole table.
                     where j.id = any(array(select o.id from pgqueue.job o where o.root_id = p_root) || p_root)
                     order by j.id for update);
    with gone as (
        delete from pgqueue.step s
         where s.id = any(array(
               select o.id from pgqueue.step o
                where o.id = any(array(select t.id from pgqueue.step t where t.root_id = p_root))
                order by o.id for update))
        returning s
    )
    select count(pgqueue.end_step(g.s, 'REVOKED', v_error, null)) into v_count from gone g;
    -- Steps that became jobs while the statements above waited, too.
    v_jobs := array(select j.id from unnest(v_jobs) j (id)
                     union
                    select j.id from unnest(array(select o.id from pgqueue.job o where o.root_id = p_root)) j (id));
    perform pgqueue.revoke(j.id) from (select j.id from unnest(v_jobs) j (id) order by j.id) j;
    return v_count + cardinality(v_jobs);
end
$$;
