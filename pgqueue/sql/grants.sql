-- Nobody but the owner may call anything until he is granted it. Enqueueing needs USAGE on the schema, EXECUTE on
-- enqueue, enqueue_many, clock, new_id, and the rights on the tables that they touch.
revoke all on schema pgqueue from public;
revoke all on all functions in schema pgqueue from public;
