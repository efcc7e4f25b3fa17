-- Nobody but the owner may call anything until he is granted it. Enqueueing needs USAGE on the schema, EXECUTE on
-- enqueue, enqueue_many, enqueue_one, enqueue_alike (to which the client turns where it can), check_calls, clock and
-- new_id, and the rights on the tables that they touch; for workflows enqueue_workflow, store_steps and enqueue_members as
-- well, INSERT on `step` and SELECT on `part`. A migration gives all these functions to whoever has enqueue_many already.
revoke all on schema pgqueue from public;
revoke all on all functions in schema pgqueue from public;
do $$
declare
    v_role regrole;
begin
    for v_role in
        select a.grantee from pg_proc p cross join aclexplode(p.proacl) a
         where p.oid = 'pgqueue.enqueue_many(json, boolean)'::regprocedure and a.grantee not in (0, p.proowner)
           and a.privilege_type = 'EXECUTE'
    loop
        execute format('grant execute on function pgqueue.enqueue_one, pgqueue.enqueue_alike, pgqueue.enqueue_workflow, '
                       'pgqueue.store_steps, pgqueue.enqueue_members to %s', v_role);
    end loop;
end
$$;
