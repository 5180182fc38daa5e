-module(nats_gateway_publishing_tests).

-include_lib("eunit/include/eunit.hrl").
-include("nats_gateway.hrl").

-import(nats_gateway_publishing, [judge/2, is_reserved_filter/1]).

pub(Subject) -> pub(Subject, undefined).

pub(Subject, ReplyTo) ->
    #pub{
        subject = Subject,
        topic = nats_gateway_nif:topic(Subject, <<>>),
        reply_to = ReplyTo,
        payload = <<>>
    }.

most_publishes_pass_test() -> ?assertEqual(pass, judge([pub(<<"a">>), pub(<<"b">>, <<"r">>)], none)).

the_brokers_own_names_are_denied_test() ->
    ?assertEqual(
        {[pass, denied, no_responders, denied, pass], none},
        judge(
            [
                pub(<<"a">>),
                pub(<<"$SYS.a">>),
                pub(<<"$SYS.a">>, <<"r">>),
                pub(<<"$share.a">>),
                pub(<<"$shared">>)
            ],
            none
        )
    ).

nats_servers_own_reply_subjects_are_denied_test() ->
    ?assertEqual({[reply_denied], none}, judge([pub(<<"a">>, <<"_R_.x">>)], none)).

reserved_filters_test() ->
    ?assert(is_reserved_filter(<<"$share.q.a">>)),
    ?assert(is_reserved_filter(<<"$queue">>)),
    ?assert(is_reserved_filter(<<"$exclusive.a">>)),
    ?assertNot(is_reserved_filter(<<"$queues">>)).
