-module(nats_gateway_kv_bucket_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_kv_bucket, [new/3, topic/2, filter/2, key/2, key_of_topic/2, of_subject/3, of_stream/3]).

page(Buckets) -> page(true, Buckets).

page(Enable, Buckets) ->
    Schema = nats_gateway_kv_bucket:page_schema(),
    case nats_gateway_schema:check(Schema, #{<<"kv_enable">> => Enable, <<"kv_buckets">> => Buckets}) of
        {ok, Settings} -> nats_gateway_kv_bucket:of_page(Settings);
        Error -> Error
    end.

settings_test_() ->
    [
        ?_assertEqual({ok, #{<<"a">> => <<"a/">>}}, page([<<"a">>])),
        ?_assertEqual({ok, #{<<"a">> => <<"x/y/">>}}, page([<<"a=x/y">>])),
        ?_assertEqual({ok, #{<<"a">> => <<"x/y/">>}}, page([<<"a=x/y/">>, <<>>])),
        ?_assertEqual({ok, #{<<"A-b_1">> => <<"A-b_1/">>}}, page([<<"A-b_1">>])),
        ?_assertEqual({ok, off}, page(false, [<<"a">>])),
        ?_assertEqual({ok, off}, page(false, [])),
        ?_assertEqual({ok, off}, nats_gateway_kv_bucket:of_page(#{kv_enable => false, kv_buckets => []}))
    ].

settings_that_are_refused_test_() ->
    [
        {binary_to_list(iolist_to_binary(io_lib:format("~p", [Buckets]))), fun() ->
            {error, Problem} = page(Buckets),
            ?assertNotEqual(nomatch, binary:match(Problem, Text))
        end}
     || {Buckets, Text} <- [
            {[], <<"at least one">>},
            {[<<"a">>, <<"a=b">>], <<"twice">>},
            {[<<"a.b">>], <<"must be the name of a bucket">>},
            {[<<"=a">>], <<"must be the name of a bucket">>},
            {[<<"a=">>], <<"must be the name of a bucket">>},
            {[<<"a=/">>], <<"must be the name of a bucket">>},
            {[<<"a=/b">>], <<"must be the name of a bucket">>},
            {[<<"a=b//c">>], <<"must be the name of a bucket">>},
            {[<<"a=b/+/c">>], <<"must be the name of a bucket">>},
            {[<<"a=b/#">>], <<"must be the name of a bucket">>},
            {[<<"a=$SYS">>], <<"must be the name of a bucket">>},
            {[<<"a=", 255>>], <<"must be the name of a bucket">>},
            {[1], <<"must be the name of a bucket">>},
            {<<"a">>, <<"kv_buckets">>}
        ]
    ].

topics_test_() ->
    B = new(<<"b">>, <<"x/">>, <<"m/">>),
    [
        ?_assertEqual({ok, <<"m/x/k/l">>}, topic(<<"k.l">>, B)),
        ?_assertEqual(invalid, topic(<<"k.*">>, B)),
        ?_assertEqual(invalid, topic(<<"k..l">>, B)),
        ?_assertEqual({ok, <<"m/x/k/#">>}, filter(<<"k.>">>, B)),
        ?_assertEqual({ok, <<"m/x/+/l">>}, filter(<<"*.l">>, B)),
        ?_assertEqual({ok, <<"k.l">>}, key_of_topic(<<"m/x/k/l">>, B)),
        %% MQTT's `m/x/#' matches its parent, too
        ?_assertEqual(error, key_of_topic(<<"m/x">>, B)),
        ?_assertEqual(error, key_of_topic(<<"m/x/">>, B)),
        ?_assertEqual(error, key_of_topic(<<"m/xy/k">>, B)),
        ?_assertEqual(<<"m/$KV/b/k/l">>, nats_gateway_kv_bucket:subject_topic(<<"m/x/k/l">>, B)),
        ?_assertEqual({ok, <<"k.l">>}, key(<<"$KV.b.k.l">>, B)),
        ?_assertEqual(error, key(<<"$KV.bb.k">>, B)),
        ?_assertEqual(error, key(<<"$KV.b.">>, B)),
        ?_assertEqual(error, key(<<"$KV.b">>, B)),
        ?_assertEqual({ok, <<"m/_INBOX/1">>}, nats_gateway_kv_bucket:inbox(<<"_INBOX.1">>, B)),
        ?_assertEqual(invalid, nats_gateway_kv_bucket:inbox(<<"_INBOX.*">>, B))
    ].

%% Every key that clients take comes back from its topic.
keys_come_back_test_() ->
    B = new(<<"b">>, <<"x/">>, <<>>),
    [
        {binary_to_list(Key), fun() ->
            {ok, Topic} = topic(Key, B),
            ?assertEqual({ok, Key}, key_of_topic(Topic, B)),
            Subject = nats_gateway_nif:subject(nats_gateway_kv_bucket:subject_topic(Topic, B), <<>>),
            ?assertEqual(<<"$KV.b.", Key/binary>>, Subject)
        end}
     || Key <- [<<"a">>, <<"a.b.c">>, <<"a/b">>, <<"a=b">>, <<"-_.A9">>, <<"a//b.c">>]
    ].

names_test_() ->
    Buckets = #{<<"b">> => <<"x/">>, <<"a">> => <<"a/">>},
    B = new(<<"b">>, <<"x/">>, <<"m/">>),
    [
        ?_assertEqual([<<"a">>, <<"b">>], nats_gateway_kv_bucket:names(Buckets)),
        ?_assertEqual([], nats_gateway_kv_bucket:names(off)),
        ?_assertEqual({ok, B}, of_stream(<<"KV_b">>, <<"m/">>, Buckets)),
        ?_assertEqual(error, of_stream(<<"KV_c">>, <<"m/">>, Buckets)),
        ?_assertEqual(error, of_stream(<<"b">>, <<"m/">>, Buckets)),
        ?_assertEqual({ok, B, <<"k.l">>}, of_subject(<<"$KV.b.k.l">>, <<"m/">>, Buckets)),
        ?_assertEqual(error, of_subject(<<"$KV.b">>, <<"m/">>, Buckets)),
        ?_assertEqual(error, of_subject(<<"$KV.c.k">>, <<"m/">>, Buckets)),
        ?_assertEqual(<<"KV_b">>, nats_gateway_kv_bucket:stream(B))
    ].
