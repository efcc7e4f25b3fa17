-- A fresh id for a job, for callers who bring none: a UUIDv7 (RFC 9562), whose first 48 bits are the time in
-- milliseconds, so that ids made together lie together in the index. PostgreSQL has its own from 18 on.
--   select pgqueue.new_id();
create or replace function pgqueue.new_id() returns uuid
language sql volatile parallel safe set search_path = pg_catalog, pg_temp
as $$
    -- Time over the first six bytes of a random UUIDv4, then version 0100 to 0111: two bits to set.
    select encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                    placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                    from 1 for 6),
            52, 1), 53, 1),
        'hex')::uuid;
$$;
